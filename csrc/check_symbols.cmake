# Fails the build when a per-ISA object holds a weak symbol.
#
# A weak symbol (a template or inline function that was not inlined) may be defined by several objects; the linker
# keeps one of them for the whole program. If it kept the AVX-512 one, every older machine would crash.
#
#   cmake -DNM=nm -DOBJECTS="a.o|b.o" -P check_symbols.cmake
string(REPLACE "|" ";" objects "${OBJECTS}")
foreach(object IN LISTS objects)
  execute_process(COMMAND "${NM}" --defined-only "${object}" OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "cannot list the symbols of ${object} with ${NM}")
  endif()
  string(REGEX MATCHALL "[^\n]* [VWuvw] [^\n]*" weak "${symbols}")
  if(weak)
    string(REPLACE ";" "\n" weak "${weak}")
    message(FATAL_ERROR
      "weak symbols in ${object}; keep std templates and inline functions with linkage out of it:\n${weak}")
  endif()
endforeach()
