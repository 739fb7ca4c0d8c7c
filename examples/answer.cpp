// A question about a document, answered with 128 rows a head of key-value cache:
//   answer MODEL.gguf DOCUMENT.txt ["QUESTION" [SCORES.json]]
// With head scores the rows go where the model retrieves (headkv-r2), else evenly (snapkv).
#include <fstream>
#include <iterator>

#include "headkv/session.h"
using namespace headkv;

static void answer(int count, char** arguments) {
    const auto model = Model::load(arguments[1]).value();
    const auto engine = Engine::create(model).value();
    std::ifstream file(arguments[2], std::ios::binary);
    const std::string document(std::istreambuf_iterator<char>(file), {});
    const std::string question = count > 3 ? arguments[3] : "What is this text about?";
    const auto chat = chat_template_detect(model->tokenizer().chat_template()).value();
    const auto prompt = question_prompt(*model, document, question, chat).value();

    MethodConfig method;
    method.method = "snapkv";
    method.budget = {Budget::Unit::rows, 128};
    if (count > 4) {
        method.method = "headkv-r2";
        method.scores = std::make_shared<const HeadScores>(load_head_scores(arguments[4]).value());
        method.options = default_options(*find_recipe(method.method).value());
    }
    const auto read = engine->prefill(prompt, {&method, 1}).value();  // once, then compressed
    const auto show = [](std::string_view piece) { return fmt::print("{}", piece), true; };
    generate(*engine, read.sequences[0], read.logits, {}, show).value();

    const SequenceInfo info = engine->info(read.sequences[0]);
    fmt::print("\n{}: {:.1f} rows a head, {} of {} bytes\n", info.method, info.rows_kept_mean,
               info.plan_bytes, info.full_bytes);
}

int main(int count, char** arguments) try {
    if (count < 3)
        return fmt::print(stderr, "usage: answer MODEL DOCUMENT [QUESTION [SCORES]]\n"), 2;
    answer(count, arguments);
} catch (const tl::bad_expected_access<Error>& error) {
    return fmt::print(stderr, "answer: {}\n", error.error().message), 1;
}
