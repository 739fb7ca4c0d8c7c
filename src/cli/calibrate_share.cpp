#include "cli/calibrate_share.h"

#include <fmt/ranges.h>

#include "calibrate/haystack.h"
#include "cli/common.h"

namespace headkv::cli {
namespace {

// Pieces of equal length, one after the other.
Result<std::vector<std::vector<Token>>> texts_of(const ShareArguments& arguments,
                                                 const Tokenizer& tokenizer,
                                                 const Haystack& haystack) {
    const auto& settings = arguments.settings;
    const auto wanted = static_cast<std::size_t>(settings.texts * settings.tokens);
    std::vector<Token> tokens;
    // A token has rarely less than two bytes; a text that is too short is repeated anyway.
    for (std::size_t bytes = 8 * wanted; tokens.size() < wanted; bytes *= 2) {
        tokens = tokenizer.encode(haystack.text(0, bytes), false, false);
        if (bytes > 64 * wanted) return bad_input("the haystack has too few tokens");
    }
    std::vector<std::vector<Token>> texts;
    for (auto first = tokens.begin(); std::ssize(texts) < settings.texts;
         first += settings.tokens) {
        texts.emplace_back(first, first + settings.tokens);
    }
    return texts;
}

std::string pairs_text(const LayerMap& map) {
    std::string text;
    for (std::int64_t layer = 0; layer < map.layers(); ++layer) {
        if (map.owns(layer)) continue;
        text += fmt::format("{}{} reads {}", text.empty() ? "" : ", ", layer, map.owner_of(layer));
    }
    return text;
}

}  // namespace

Result<void> calibrate_share(const ModelArguments& model_arguments,
                             const ShareArguments& arguments) {
    const auto& settings = arguments.settings;
    if (settings.texts < 1 || settings.tokens < 2) {
        return bad_input("{} texts of {} tokens: give at least one of two", settings.texts,
                         settings.tokens);
    }
    if (settings.wanted < 0) {
        return bad_input("--share-layers {}: must be 0 or more", settings.wanted);
    }
    if (!(settings.least >= -1 && settings.least < 1)) {
        return bad_input("--share-cosine {:g}: must be from -1 to below 1", settings.least);
    }
    if (auto output = check_output(arguments.json); !output) return output;
    if (auto output = check_output(arguments.out); !output) return output;
    const Stopwatch watch;
    auto model = load_model(model_arguments);
    if (!model) return tl::unexpected(model.error());
    auto haystack = arguments.haystack.empty() ? Result<Haystack>(Haystack::builtin(settings.seed))
                                               : Haystack::folder(arguments.haystack);
    if (!haystack) return tl::unexpected(haystack.error());
    auto engine = Engine::create(*model, model_arguments.engine);
    if (!engine) return tl::unexpected(engine.error());
    const auto texts = texts_of(arguments, (*model)->tokenizer(), *haystack);
    if (!texts) return tl::unexpected(texts.error());

    catch_interrupts();
    ProgressBar bar("calibrate");
    auto map = share_layers(**engine, *texts, settings, [&](std::int64_t done, std::int64_t total) {
        bar.update(static_cast<double>(done), static_cast<double>(total));
        return !interrupted();
    });
    bar.clear();
    if (!map) return tl::unexpected(map.error());
    const ModelInfo& info = (*model)->info();
    map->model_name = model_title(info);
    map->architecture = info.architecture;
    map->fingerprint = info.fingerprint;
    map->settings_json = settings_json(settings, haystack->name()).dump();
    map->created_by = "headkv " + version();
    if (auto saved = write_output(arguments.out, layer_map_text(*map)); !saved) return saved;
    if (arguments.json != "-") {
        auto shown = print(fmt::format(
            "{} of {} layers share rows: {}\ncosine of the final hidden states {:.3f}, {} pairs "
            "tried, {}\nwritten to {}\n",
            map->layers() - map->owners(), map->layers(), pairs_text(*map), map->cosine, map->tried,
            human_ms(watch.ms()), arguments.out));
        if (!shown) return shown;
    }
    if (arguments.json.empty()) return {};
    const nlohmann::json json = {{"kind", "share"},
                                 {"model", map->model_name},
                                 {"fingerprint", map->fingerprint},
                                 {"owner", map->owner},
                                 {"cosine", map->cosine},
                                 {"tried", map->tried},
                                 {"seconds", watch.ms() / 1000},
                                 {"file", arguments.out}};
    return write_output(arguments.json, json.dump() + "\n");
}

}  // namespace headkv::cli
