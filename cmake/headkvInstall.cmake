# `cmake --install`: the program, headers, static libraries, CMake package files, measured head
# scores, and a copy of the ggml that was built for this machine, so that the tree works by itself.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/headkv)
set(ggml_home lib/headkv/ggml) # below the prefix
get_target_property(ggml_library ggml::ggml LOCATION)
get_filename_component(ggml_lib_dir "${ggml_library}" DIRECTORY)
get_filename_component(ggml_lib_name "${ggml_lib_dir}" NAME) # lib, or lib64 in the binary wheel
find_path(HEADKV_GGML_HEADERS ggml.h HINTS "${ggml_lib_dir}/../include" NO_DEFAULT_PATH REQUIRED)
mark_as_advanced(HEADKV_GGML_HEADERS)
if(ggml_DIR MATCHES "^/(usr|lib)/")
  set(HEADKV_BUNDLE_GGML OFF)
endif()

get_property(layers GLOBAL PROPERTY headkv_layers)
install(TARGETS headkv ${layers} EXPORT headkvTargets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT headkvTargets NAMESPACE headkv:: DESTINATION ${package_dir})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/headkv DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h")
install(DIRECTORY ${PROJECT_SOURCE_DIR}/scores DESTINATION ${CMAKE_INSTALL_DATADIR}/headkv
        FILES_MATCHING PATTERN "*.json")

if(TARGET headkv-cli)
  install(TARGETS headkv-cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  if(HEADKV_BUNDLE_GGML)
    set_target_properties(headkv-cli PROPERTIES INSTALL_RPATH "$ORIGIN/../${ggml_home}/${ggml_lib_name}")
  else()
    set_target_properties(headkv-cli PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
  endif()
endif()
if(HEADKV_BUNDLE_GGML)
  install(DIRECTORY ${ggml_lib_dir}/ DESTINATION ${ggml_home}/${ggml_lib_name} FILES_MATCHING PATTERN "libggml*")
  install(DIRECTORY ${ggml_DIR}/ DESTINATION ${ggml_home}/${ggml_lib_name}/cmake/ggml)
  install(DIRECTORY ${HEADKV_GGML_HEADERS}/ DESTINATION ${ggml_home}/include
          FILES_MATCHING PATTERN "ggml*.h" PATTERN "gguf.h")
endif()

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/headkvConfig.cmake.in
  ${PROJECT_BINARY_DIR}/headkvConfig.cmake INSTALL_DESTINATION ${package_dir}
  NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/headkvConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/headkvConfig.cmake ${PROJECT_BINARY_DIR}/headkvConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/headkvDependencies.cmake
        DESTINATION ${package_dir})
