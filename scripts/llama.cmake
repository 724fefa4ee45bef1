# Read by CMake at llama.cpp's project() line (scripts/setup passes it): do not build what llmaas never loads.
#
# llama-common, with the web server's parts, is 57 of 140 build steps and half of the time. -DLLAMA_BUILD_COMMON=OFF
# is not enough: llama-cpp-python's CMakeLists.txt sets the cached option to ON by force, after the command line. This
# plain variable is set later, in llama.cpp's own folder, and goes before the cached one there.
set(LLAMA_BUILD_COMMON OFF)
