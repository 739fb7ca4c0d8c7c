// The benchmarks' own prompts, metrics and lengths of answers: they are what makes a score
// comparable, so they stand here to the letter, slips included ("asconcisely").
//
// LongBench (MIT licence): github.com/THUDM/LongBench at 2e00731,
// LongBench/config/dataset2prompt.json and dataset2maxlen.json; metrics, and which sets are cut to
// their first line, from eval.py there. LooGLE (MIT licence): github.com/bigai-nlco/LooGLE at
// 6734382, its prompt for long dependencies; lengths of answers as HeadKV's evaluation has them.
#include <array>
#include <cstdint>
#include <string_view>

#include "eval/longbench.h"

namespace headkv {
namespace {

struct SetEntry {
    std::string_view set, metric;
    std::int64_t max_new_tokens = 0;
    bool first_line_only = false;
    std::string_view prompt;
};

constexpr std::string_view kPassages =
    "Answer the question based on the given passages. Only give me the answer and do not output "
    "any other words.\n\nThe following are given passages.\n{context}\n\nAnswer the question based "
    "on the given passages. Only give me the answer and do not output any other "
    "words.\n\nQuestion: {input}\nAnswer:";
constexpr std::string_view kLongTexts =
    "Please answer the question based on the long texts below. \n{context}\nQuestion: "
    "{input}\nAnswer:";

constexpr auto kSets = std::to_array<SetEntry>({
    {"narrativeqa", "qa_f1", 128, false,
     "You are given a story, which can be either a novel or a movie script, and a question. Answer "
     "the question asconcisely as you can, using a single phrase if possible. Do not provide any "
     "explanation.\n\nStory: {context}\n\nNow, answer the question based on the story asconcisely "
     "as you can, using a single phrase if possible. Do not provide any explanation.\n\nQuestion: "
     "{input}\n\nAnswer:"},
    {"qasper", "qa_f1", 128, false,
     "You are given a scientific article and a question. Answer the question as concisely as you "
     "can, using a single phrase or sentence if possible. If the question cannot be answered based "
     "on the information in the article, write \"unanswerable\". If the question is a yes/no "
     "question, answer \"yes\", \"no\", or \"unanswerable\". Do not provide any "
     "explanation.\n\nArticle: {context}\n\n Answer the question based on the above article as "
     "concisely as you can, using a single phrase or sentence if possible. If the question cannot "
     "be answered based on the information in the article, write \"unanswerable\". If the question "
     "is a yes/no question, answer \"yes\", \"no\", or \"unanswerable\". Do not provide any "
     "explanation.\n\nQuestion: {input}\n\nAnswer:"},
    {"multifieldqa_en", "qa_f1", 64, false,
     "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following "
     "question based on the above text, only give me the answer and do not output any other "
     "words.\n\nQuestion: {input}\nAnswer:"},
    {"multifieldqa_zh", "qa_f1_zh", 64, false,
     "阅读以下文字并用中文简短回答：\n\n{context}"
     "\n\n现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n问题：{input}"
     "\n回答："},
    {"hotpotqa", "qa_f1", 32, false, kPassages},
    {"2wikimqa", "qa_f1", 32, false, kPassages},
    {"musique", "qa_f1", 32, false, kPassages},
    {"dureader", "rouge_l_zh", 128, false,
     "请基于给定的文章回答下述问题。\n\n文章：{context}"
     "\n\n请基于上述文章回答下面的问题。\n\n问题：{input}\n回答："},
    {"gov_report", "rouge_l", 512, false,
     "You are given a report by a government agency. Write a one-page summary of the "
     "report.\n\nReport:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:"},
    {"qmsum", "rouge_l", 512, false,
     "You are given a meeting transcript and a query containing a question or instruction. Answer "
     "the query in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based "
     "on the above meeting transcript in one or more sentences.\n\nQuery: {input}\nAnswer:"},
    {"multi_news", "rouge_l", 512, false,
     "You are given several news passages. Write a one-page summary of all news. "
     "\n\nNews:\n{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:"},
    {"vcsum", "rouge_l_zh", 512, false,
     "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}"
     "\n\n会议总结："},
    {"trec", "classification", 64, true,
     "Please determine the type of the question below. Here are some examples of "
     "questions.\n\n{context}\n{input}"},
    {"triviaqa", "qa_f1", 32, true,
     "Answer the question based on the given passage. Only give me the answer and do not output "
     "any other words. The following are some examples.\n\n{context}\n\n{input}"},
    {"samsum", "rouge_l", 128, true,
     "Summarize the dialogue into a few short sentences. The following are some "
     "examples.\n\n{context}\n\n{input}"},
    {"lsht", "classification", 64, true,
     "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}"},
    {"passage_count", "count", 32, false,
     "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. "
     "Please carefully read these paragraphs and determine how many unique paragraphs there are "
     "after removing duplicates. In other words, how many non-repeating paragraphs are there in "
     "total?\n\n{context}\n\nPlease enter the final count of unique paragraphs after removing "
     "duplicates. The output format should only contain the number, such as 1, 2, 3, and so "
     "on.\n\nThe final answer is: "},
    {"passage_retrieval_en", "retrieval", 32, false,
     "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which "
     "paragraph the abstract is from.\n\n{context}\n\nThe following is an "
     "abstract.\n\n{input}\n\nPlease enter the number of the paragraph that the abstract is from. "
     "The answer format must be like \"Paragraph 1\", \"Paragraph 2\", etc.\n\nThe answer is: "},
    {"passage_retrieval_zh", "retrieval_zh", 32, false,
     "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}"
     "\n\n下面是一个摘要\n\n{input}"
     "\n\n请输入摘要所属段落的编号。答案格式必须是\"段落1\"，\"段落2\"等格式\n\n答案是："},
    {"lcc", "code_sim", 64, false,
     "Please complete the code given below. \n{context}Next line of code:\n"},
    {"repobench-p", "code_sim", 64, false,
     "Please complete the code given below. \n{context}{input}Next line of code:\n"},
    {"comprehension_and_reasoning", "qa_f1", 64, false, kLongTexts},
    {"multiple_information_retrieval", "qa_f1", 64, false, kLongTexts},
    {"timeline_reorder", "qa_f1", 32, false, kLongTexts},
    {"computation", "qa_f1", 32, false, kLongTexts},
});

}  // namespace

nlohmann::json longbench_settings() {
    nlohmann::json settings;
    for (const SetEntry& entry : kSets) {
        settings[entry.set] = {{"metric", entry.metric},
                               {"max_new_tokens", entry.max_new_tokens},
                               {"first_line_only", entry.first_line_only},
                               {"multi_answer", "max"},
                               {"prompt", entry.prompt}};
    }
    return settings;
}

}  // namespace headkv
