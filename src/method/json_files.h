// Folders of score files and layer maps.
#pragma once

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

namespace headkv {

// The .json files of a folder by name; none where it is not there or cannot be read.
inline std::vector<std::filesystem::path> json_files_of(const std::filesystem::path& folder) {
    std::vector<std::filesystem::path> files;
    std::error_code error;
    for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error)) {
        if (entry->path().extension() == ".json") files.push_back(entry->path());
    }
    std::sort(files.begin(), files.end());  // the folder's own order is not fixed
    return files;
}

}  // namespace headkv
