# Read by CMake at llama.cpp's project() line (scripts/setup passes it).
#
# What llmaas never loads is not built. llama-common, with the web server's parts, is 57 of 140 build steps and half of
# the time. -DLLAMA_BUILD_COMMON=OFF is not enough: llama-cpp-python's CMakeLists.txt sets the cached option to ON by
# force, after the command line. This plain variable is set later, in llama.cpp's own folder, and goes before the cached
# one there.
set(LLAMA_BUILD_COMMON OFF)

# Dot products of quantized rows are short loops, and nearly all of a prefill: unrolled, it takes 4 % less time with
# Q4_1 weights and 2 % less with Q4_K (docs/engine.md). The order of additions, so each bit of the result, is the same.
add_compile_options($<$<COMPILE_LANG_AND_ID:C,GNU,Clang>:-funroll-loops>)
add_compile_options($<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang>:-funroll-loops>)
