# Everything that our libraries link. The build includes this file, and so does the installed
# headkvConfig.cmake: a program that links headkv::headkv needs the same packages.
find_package(Threads REQUIRED)
find_package(ggml REQUIRED)
find_package(fmt REQUIRED)
find_package(tl-expected REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET GLOBAL libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET GLOBAL libutf8proc)

# oneDNN multiplies dequantised weights on CPUs with matrix units; without it ggml does all products.
# Looked up by hand: Debian's package file for CMake also demands the OpenCL headers, which nobody needs.
set(HEADKV_HAVE_DNNL OFF)
if(HEADKV_DNNL)
  find_path(HEADKV_DNNL_INCLUDE_DIR dnnl.hpp)
  find_library(HEADKV_DNNL_LIBRARY dnnl)
  mark_as_advanced(HEADKV_DNNL_INCLUDE_DIR HEADKV_DNNL_LIBRARY)
  if(HEADKV_DNNL_INCLUDE_DIR AND HEADKV_DNNL_LIBRARY)
    set(HEADKV_HAVE_DNNL ON)
    # Debian's oneDNN threads with OpenMP; we must say how many. Its library is all that we need, not
    # the compiler flag.
    find_package(OpenMP REQUIRED COMPONENTS CXX)
    if(NOT TARGET headkv_dnnl_import)
      add_library(headkv_dnnl_import UNKNOWN IMPORTED GLOBAL)
      set_target_properties(headkv_dnnl_import PROPERTIES
        IMPORTED_LOCATION "${HEADKV_DNNL_LIBRARY}"
        INTERFACE_INCLUDE_DIRECTORIES "${HEADKV_DNNL_INCLUDE_DIR}"
        INTERFACE_LINK_LIBRARIES "${OpenMP_CXX_LIBRARIES}")
    endif()
  endif()
endif()
