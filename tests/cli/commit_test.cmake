# cmake -DSCRIPT=cmake/headkvCommit.cmake -DFOLDER=... -P commit_test.cmake
# The commit that a build writes down: of a checkout, of a changed one, of an archive inside of one.
cmake_minimum_required(VERSION 3.25)
find_program(git git REQUIRED)
file(REMOVE_RECURSE ${FOLDER})
file(MAKE_DIRECTORY ${FOLDER}/checkout/archive)

function(expect source pattern)
  execute_process(COMMAND ${CMAKE_COMMAND} -DSOURCE=${source} -DOUTPUT=${FOLDER}/commit.cpp -P ${SCRIPT}
                  COMMAND_ERROR_IS_FATAL ANY)
  file(READ ${FOLDER}/commit.cpp text)
  if(NOT text MATCHES "return \"${pattern}\";")
    message(FATAL_ERROR "${source}: ${pattern} is not in\n${text}")
  endif()
endfunction()
function(run)
  execute_process(COMMAND ${git} -C ${FOLDER}/checkout -c user.name=t -c user.email=t@t ${ARGN}
                  OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
endfunction()

expect(${FOLDER}/checkout unknown)
run(init -q)
expect(${FOLDER}/checkout unknown) # no commit yet
file(WRITE ${FOLDER}/checkout/file "a")
run(add file)
run(commit -q -m one)
run(tag v1)
execute_process(COMMAND ${git} -C ${FOLDER}/checkout rev-parse --short=12 HEAD
                OUTPUT_VARIABLE head OUTPUT_STRIP_TRAILING_WHITESPACE)
expect(${FOLDER}/checkout ${head})
# Written once only: what reads the file is not built again.
file(TIMESTAMP ${FOLDER}/commit.cpp before "%Y-%m-%d %H:%M:%S" UTC)
execute_process(COMMAND ${CMAKE_COMMAND} -E sleep 1.1)
expect(${FOLDER}/checkout ${head})
file(TIMESTAMP ${FOLDER}/commit.cpp after "%Y-%m-%d %H:%M:%S" UTC)
if(NOT before STREQUAL after)
  message(FATAL_ERROR "the same commit was written again")
endif()
file(WRITE ${FOLDER}/checkout/file "b")
expect(${FOLDER}/checkout ${head}-dirty)
expect(${FOLDER}/checkout/archive unknown)
