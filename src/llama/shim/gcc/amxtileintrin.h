// The compiler's own header, with one thing mended: GCC's _tile_loadconfig (12, at the least) says that it reads eight bytes of
// the 64 that it reads, so that the optimiser drops what was written into the others. ggml's tiles then have no rows, and the
// first use of one is an illegal instruction, on every CPU with AMX. `.cargo/config.toml` puts this folder before the compiler's.
#include_next <amxtileintrin.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && !defined(HEARTH_TILE_LOADCONFIG)
#define HEARTH_TILE_LOADCONFIG
#undef _tile_loadconfig
#define _tile_loadconfig(config) \
    __asm__ volatile ("ldtilecfg\t%X0" :: "m" (*reinterpret_cast<const char (*)[64]>(config)))
#endif
