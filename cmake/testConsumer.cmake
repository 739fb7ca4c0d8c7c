# Run by ctest: installs BUILD into an empty prefix, moves the prefix elsewhere (nothing in it may
# depend on where it was installed), builds SOURCE against it, and runs both programs.
set(work ${BUILD}/consumer)
set(prefix ${work}/moved)
file(REMOVE_RECURSE ${work})

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "failed with ${status}: ${command}")
  endif()
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/installed)
file(RENAME ${work}/installed ${prefix})
run(${CMAKE_COMMAND} -S ${SOURCE} -B ${work}/build -G ${GENERATOR} -D CMAKE_CXX_COMPILER=${CXX}
    -D CMAKE_PREFIX_PATH=${prefix} -D CMAKE_BUILD_TYPE=Release)
run(${CMAKE_COMMAND} --build ${work}/build)
if(EXISTS ${MODEL})
  set(model ${MODEL})
endif()
unset(ENV{LD_LIBRARY_PATH})
run(${work}/build/consumer ${model})
run(${prefix}/bin/headkv methods)
