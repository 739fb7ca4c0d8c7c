// Files of one JSON object a line, as needles and examples come in.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/error.h"

namespace headkv {

inline bool is_blank(std::string_view text) {
    return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

// What parse(line, where, number) makes of each line that is not blank; `where` is "FILE: line N",
// for its errors. `file_is` and `row_is` name file and row in errors: "needle file", "needle".
// Errors (bad_input): a file that cannot be read or holds nothing, and the first that parse gives.
template <typename Row, typename Parse>
Result<std::vector<Row>> parse_lines(const std::filesystem::path& file, std::string_view file_is,
                                     std::string_view row_is, const Parse& parse) {
    std::ifstream in(file, std::ios::binary);
    if (!in) return bad_input("{}: cannot read the {}", file.string(), file_is);
    std::vector<Row> rows;
    std::string line;
    for (std::int64_t number = 1; std::getline(in, line); ++number) {
        if (is_blank(line)) continue;
        Result<Row> row = parse(line, fmt::format("{}: line {}", file.string(), number), number);
        if (!row) return tl::unexpected(row.error());
        rows.push_back(std::move(*row));
    }
    if (rows.empty()) return bad_input("{}: holds no {}", file.string(), row_is);
    return rows;
}

}  // namespace headkv
