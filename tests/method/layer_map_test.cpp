// Files of layers that share rows.
#include "headkv/layer_map.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace headkv {
namespace {

LayerMap example() {
    LayerMap map;
    map.model_name = "a \"model\"";
    map.architecture = "llama";
    map.fingerprint = "0123456789abcdef";
    map.shape = {5, 6, 3};
    map.owner = {0, 1, 0, 3, 1};
    map.cosine = 0.875;
    map.tried = 7;
    map.settings_json = R"({"tokens":64})";
    map.created_by = "test";
    return map;
}

class LayerMaps : public testing::Test {
protected:
    void SetUp() override {
        folder_ =
            std::filesystem::temp_directory_path() / ("headkv-map-" + std::to_string(::getpid()));
        std::filesystem::create_directories(folder_);
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }
    std::filesystem::path write(const std::string& text) const {
        const auto file = folder_ / "some.share.json";
        std::ofstream(file) << text;
        return file;
    }
    // The message of the refusal, one line that names the file.
    std::string refusal(const std::string& text) const {
        const auto map = load_layer_map(write(text));
        if (map) return "accepted";
        EXPECT_EQ(map.error().kind, ErrorKind::bad_input);
        EXPECT_EQ(map.error().message.find('\n'), std::string::npos);
        EXPECT_NE(map.error().message.find("some.share.json"), std::string::npos);
        return map.error().message;
    }
    std::filesystem::path folder_;
};

TEST_F(LayerMaps, AreReadAsTheyWereWritten) {
    const auto map = load_layer_map(write(layer_map_text(example()))).value();
    EXPECT_EQ(map.model_name, example().model_name);
    EXPECT_EQ(map.fingerprint, example().fingerprint);
    EXPECT_EQ(map.shape, example().shape);
    EXPECT_EQ(map.owner, example().owner);
    EXPECT_EQ(map.cosine, 0.875);
    EXPECT_EQ(map.tried, 7);
    EXPECT_EQ(map.settings_json, example().settings_json);
    EXPECT_EQ(layer_map_text(map), layer_map_text(example()));
    EXPECT_EQ(find_layer_map({folder_ / "none", folder_}, map.fingerprint).value().owner,
              map.owner);
    const auto none = find_layer_map({folder_}, "fedcba9876543210");
    ASSERT_FALSE(none);
    EXPECT_NE(none.error().message.find("calibrate --kind share"), std::string::npos);
}

TEST_F(LayerMaps, KnowTheirReaders) {
    const auto map = example();
    EXPECT_EQ(map.owners(), 3);
    EXPECT_TRUE(map.owns(3));
    EXPECT_FALSE(map.owns(4));
    EXPECT_EQ(map.last_reader(0), 2);
    EXPECT_EQ(map.last_reader(1), 4);
    EXPECT_EQ(map.last_reader(3), 3);
}

TEST_F(LayerMaps, BadFilesAreRefused) {
    const auto changed = [](const std::string& from, const std::string& to) {
        auto text = layer_map_text(example());
        const auto at = text.find(from);
        EXPECT_NE(at, std::string::npos) << from;
        return text.replace(at, from.size(), to);
    };
    EXPECT_EQ(refusal(layer_map_text(example())), "accepted");
    EXPECT_NE(refusal("{").find("not JSON"), std::string::npos);
    EXPECT_NE(refusal("[]").find("headkv-share/1"), std::string::npos);
    EXPECT_NE(refusal(changed("share/1", "share/2")).find("headkv-share/1"), std::string::npos);
    EXPECT_NE(refusal(changed("\"model\"", "\"modal\"")).find("'model'"), std::string::npos);
    EXPECT_NE(refusal(changed("\"layers\": 5", "\"layers\": 6")).find("list of 6"),
              std::string::npos);
    EXPECT_NE(refusal(changed("\"layers\": 5", "\"layers\": -5")).find("whole numbers"),
              std::string::npos);
    EXPECT_NE(refusal(changed("[0,1,0,3,1]", "[0,1,0,3,\"1\"]")).find("whole numbers"),
              std::string::npos);
    EXPECT_NE(refusal(changed("[0,1,0,3,1]", "[0,1,0,4,1]")).find("earlier"), std::string::npos);
    EXPECT_NE(refusal(changed("[0,1,0,3,1]", "[0,1,0,3,2]")).find("owns none"), std::string::npos);
    EXPECT_NE(load_layer_map(folder_).error().message.find("folder"), std::string::npos);
    EXPECT_FALSE(load_layer_map(folder_ / "none.json"));
}

TEST_F(LayerMaps, OfAnotherModelAreRefused) {
    const auto map = example();
    EXPECT_TRUE(check_layer_map(map, {5, 6, 3}, map.fingerprint, false));
    EXPECT_TRUE(check_layer_map(map, {5, 6, 3}, "", false));
    EXPECT_TRUE(check_layer_map(map, {5, 6, 3}, "another", true));
    const auto other = check_layer_map(map, {5, 6, 3}, "another", false);
    ASSERT_FALSE(other);
    EXPECT_NE(other.error().message.find("--force-scores"), std::string::npos);
    const auto shape = check_layer_map(map, {4, 6, 3}, map.fingerprint, true);
    ASSERT_FALSE(shape);
    EXPECT_NE(shape.error().message.find("5 layers"), std::string::npos);
    EXPECT_NE(shape.error().message.find("has 4"), std::string::npos);
}

}  // namespace
}  // namespace headkv
