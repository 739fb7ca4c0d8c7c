# Writes OUTPUT, a source file that holds the commit of SOURCE, if it does not hold it already.
# Run as a script by every build: `cmake -DSOURCE=... -DOUTPUT=... -P headkvCommit.cmake`.
# "-dirty" where files that git tracks are changed; "unknown" where SOURCE is no checkout of its own
# (an unpacked archive, even inside of another repository) or there is no git.
set(commit "unknown")
find_program(git git)
if(git AND EXISTS ${SOURCE}/.git)
  execute_process(COMMAND ${git} -C ${SOURCE} describe --always --abbrev=12 --exclude=* --dirty
                  OUTPUT_VARIABLE found RESULT_VARIABLE status ERROR_QUIET
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(status EQUAL 0 AND found MATCHES "^[0-9a-f]+(-dirty)?$")
    set(commit ${found})
  endif()
endif()
set(text "#include \"cli/commit.h\"\n
namespace headkv::cli {
std::string_view commit() { return \"${commit}\"; }
}  // namespace headkv::cli\n")
set(before "")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} before)
endif()
if(NOT text STREQUAL before)
  file(WRITE ${OUTPUT} "${text}")
endif()
