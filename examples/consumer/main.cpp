// Lists the methods, says what each would keep of a 4000-token prompt, and opens a model if given.
#include <headkv/engine.h>
#include <headkv/method.h>
#include <headkv/model.h>

#include <cstdint>
#include <cstdio>
#include <memory>

namespace {

int report(const headkv::Error& error) {
    std::fprintf(stderr, "%s\n", error.message.c_str());
    return error.kind == headkv::ErrorKind::bad_input ? 2 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    const headkv::HeadShape shape{.layers = 30, .query_heads = 9, .kv_heads = 3};
    const std::int64_t prompt_tokens = 4000, row_bytes = 256;
    for (const headkv::Recipe& recipe : headkv::recipes()) {
        headkv::MethodConfig config;
        config.method = recipe.name;
        const auto method = headkv::Method::create(config, shape, prompt_tokens, row_bytes);
        if (method) {
            std::printf("%-14s %6.0f rows a head\n", config.method.c_str(), method->rows_budget());
        } else {  // headkv-r and -r2 need the head scores of a model
            std::printf("%-14s %s\n", config.method.c_str(), method.error().message.c_str());
        }
    }
    if (argc < 2) {
        return 0;
    }
    const auto model = headkv::Model::load(argv[1]);
    if (!model) {
        return report(model.error());
    }
    const auto engine = headkv::Engine::create(*model);
    if (!engine) {
        return report(engine.error());
    }
    std::printf("%s: %lld tokens of context\n", (*model)->info().name.c_str(),
                static_cast<long long>((*model)->info().context));
    return 0;
}
