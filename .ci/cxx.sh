#!/bin/sh
# Prints the C++ compiler that builds ggml's variants for the kind of CPU named (`uname -m`'s word); fails when none here can.
# The newest of Arm's, for SME, needs GCC 14 or clang 18, which is more than some systems call c++.
set -eu

arch=$1
if [ "$arch" = "$(uname -m)" ]; then usual=${CXX:-c++}; else usual=$arch-linux-gnu-g++; fi
knows() {
    command -v "${1%% *}" >/dev/null || return 1
    [ "$arch" = aarch64 ] || return 0
    # shellcheck disable=SC2086 # a compiler may come with its launcher
    printf '#include <arm_sme.h>\n#include <vector>\nint main() { return std::vector<int>{}.size(); }\n' \
        | $* -march=armv9.2-a+dotprod+fp16+sve+i8mm+sve2+sme -x c++ -c -o /dev/null - 2>/dev/null
}

if knows "$usual"; then
    echo "$usual"
    exit
fi
# shellcheck disable=SC2012 # names of compilers
for clang in clang++ $(ls /usr/bin/clang++-[0-9]* 2>/dev/null | sed 's|.*/||' | sort -t- -k2nr); do
    if knows "$clang" "--target=$arch-unknown-linux-gnu"; then
        echo "$clang"
        exit
    fi
done
exit 1
