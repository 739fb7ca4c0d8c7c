# Kernels for an instruction set sit in files named after it (attention_avx2.cpp) and are the only
# ones compiled for it; which of them run is decided at run time. On another architecture, or with a
# compiler that does not know a set, the file is compiled without the flags and must guard its code
# with the compiler's macros (__AVX2__, __AVX512F__, __AVX512VNNI__, __AMX_BF16__).
include(CheckCXXCompilerFlag)

set(headkv_avx2_flags -mavx2 -mfma -mf16c)
set(headkv_avx512_flags ${headkv_avx2_flags} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
set(headkv_vnni_flags ${headkv_avx512_flags} -mavx512vnni)
set(headkv_amx_flags ${headkv_avx512_flags} -mavx512bf16 -mamx-tile -mamx-bf16)
foreach(set avx2 avx512 vnni amx)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    string(JOIN " " joined ${headkv_${set}_flags})
    check_cxx_compiler_flag("${joined}" HEADKV_COMPILES_${set})
  else()
    set(HEADKV_COMPILES_${set} OFF)
  endif()
endforeach()

function(headkv_vector_flags)
  foreach(source IN LISTS ARGN)
    if(source MATCHES "_(avx2|avx512|vnni|amx)\\.cpp$")
      set(set ${CMAKE_MATCH_1})
      set(flags -O3)
      if(HEADKV_COMPILES_${set})
        list(APPEND flags ${headkv_${set}_flags})
      endif()
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags}" SKIP_PRECOMPILE_HEADERS ON)
    endif()
  endforeach()
endfunction()
