#include "text/keep_marks.h"

#include <gtest/gtest.h>

namespace headkv {
namespace {

TEST(KeepMarks, AreTakenOutAndTheirPartsRemembered) {
    const auto taken = take_keep_marks("a <keep>bc</keep> d<keep></keep><keep>\ne</keep>");
    ASSERT_TRUE(taken) << taken.error().message;
    EXPECT_EQ(taken->text, "a bc d\ne");
    EXPECT_EQ(taken->spans, (std::vector<ByteSpan>{{2, 4}, {6, 8}}));
    EXPECT_EQ(take_keep_marks("<b> plain </b>")->text, "<b> plain </b>");
    EXPECT_TRUE(take_keep_marks("")->spans.empty());
}

TEST(KeepMarks, MustPair) {
    const auto message = [](const char* text) {
        const auto taken = take_keep_marks(text);
        return taken ? std::string("accepted") : taken.error().message;
    };
    EXPECT_EQ(message("a\n<keep>b"), "line 2 has <keep> without </keep> behind it");
    EXPECT_EQ(message("a</keep>b"), "line 1 has </keep> without <keep> before it");
    EXPECT_EQ(message("<keep>\n\n<keep></keep></keep>"), "line 3 has <keep> inside another");
}

}  // namespace
}  // namespace headkv
