# Precompiled headers, for `make`: reading the standard library, fmt and JSON is most of what compiling
# one of our files costs. Off by default and in the sanitizer build, so that a file which forgets an
# #include is found.
set(headkv_pch_library <algorithm> <array> <chrono> <cmath> <cstdint> <cstring> <filesystem> <fstream>
    <functional> <map> <memory> <numeric> <optional> <span> <string> <string_view> <utility> <vector>
    <fmt/format.h> <nlohmann/json.hpp> <tl/expected.hpp>)
set(headkv_pch_program ${headkv_pch_library} <iostream> <CLI/CLI.hpp>)
set(headkv_pch_test ${headkv_pch_library} <random> <gtest/gtest.h>)

# An empty library of each kind holds the set that the targets of the kind share. Programs are
# compiled with other flags than libraries (-fPIE), so that sets are never shared across kinds.
function(headkv_precompile target kind)
  if(NOT HEADKV_PCH)
    return()
  endif()
  set(carrier headkv_pch_${kind})
  if(NOT TARGET ${carrier})
    file(WRITE ${PROJECT_BINARY_DIR}/${carrier}.cpp "")
    add_library(${carrier} OBJECT ${PROJECT_BINARY_DIR}/${carrier}.cpp)
    target_link_libraries(${carrier} PRIVATE headkv_flags fmt::fmt tl::expected nlohmann_json::nlohmann_json)
    if(kind STREQUAL test)
      target_link_libraries(${carrier} PRIVATE GTest::gtest)
    elseif(kind STREQUAL program)
      target_link_libraries(${carrier} PRIVATE CLI11::CLI11)
    endif()
    if(NOT kind STREQUAL library)
      set_target_properties(${carrier} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    endif()
    target_precompile_headers(${carrier} PRIVATE ${headkv_pch_${kind}})
  endif()
  if(NOT kind STREQUAL library)
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  endif()
  target_precompile_headers(${target} REUSE_FROM ${carrier})
endfunction()
