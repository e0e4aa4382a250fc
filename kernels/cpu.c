/* What this CPU can do, as oneDNN sees it, and what it should. */
#include <cpuid.h>
#include <stdbool.h>

#include "kernels.h"

#if HAPI_HAVE_ONEDNN
#include <dnnl.h>
#endif

bool hapi_cpu_has_bf16(bool *amx)
{
    bool has = false, tiles = false;
#if HAPI_HAVE_ONEDNN
    /* oneDNN's answer, not cpuid's: AMX also needs the kernel's permission, which it asks for. ISA values are
     * sets of features. */
    unsigned isa = (unsigned)dnnl_get_effective_cpu_isa(), bf16 = dnnl_cpu_isa_avx512_core_bf16;
    unsigned tile = dnnl_cpu_isa_avx512_core_amx;
    has = (isa & bf16) == bf16;
    tiles = (isa & tile) == tile;
#endif
    if (amx)
        *amx = tiles;
    return has;
}

bool hapi_cpu_has_int8(void)
{
    bool has = false;
#if HAPI_HAVE_ONEDNN
    unsigned vnni = dnnl_cpu_isa_avx512_core_vnni;
    has = ((unsigned)dnnl_get_effective_cpu_isa() & vnni) == vnni;
#endif
    return has;
}

bool hapi_cpu_same_bits(void)
{
    bool same = true;
#if HAPI_HAVE_ONEDNN
    unsigned avx2 = dnnl_cpu_isa_avx2;
    same = ((unsigned)dnnl_get_effective_cpu_isa() & avx2) == avx2;
#endif
    return same;
}

enum { SAPPHIRE_RAPIDS = 0x8f, EMERALD_RAPIDS = 0xcf, GRANITE_RAPIDS = 0xad, GRANITE_RAPIDS_D = 0xae };

/* Whether the CPU's model has AMX, whatever a hypervisor lets through. */
static bool model_has_amx(void)
{
    unsigned a, b, c, d;

    /* "GenuineIntel" */
    if (!__get_cpuid(0, &a, &b, &c, &d) || b != 0x756e6547 || !__get_cpuid(1, &a, &b, &c, &d))
        return false;
    unsigned family = a >> 8 & 15, model = (a >> 4 & 15) | (a >> 12 & 0xf0);
    return family == 6 && (model == SAPPHIRE_RAPIDS || model == EMERALD_RAPIDS || model == GRANITE_RAPIDS ||
                           model == GRANITE_RAPIDS_D);
}

static bool cpuid_has_amx(void)
{
    unsigned a, b, c, d;

    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1);
}

const char *hapi_cpu_warning(void)
{
    bool amx;

    hapi_cpu_has_bf16(&amx);
    if (amx)
        return NULL;
    if (cpuid_has_amx())
        return "this CPU has AMX, but this process cannot use it (a kernel before 5.16, or one that does not "
               "grant it, or "
               "ONEDNN_MAX_CPU_ISA): bf16 is several times slower than it could be";
    if (model_has_amx())
        return "this CPU's model has AMX, but it is hidden (a hypervisor's CPU model, or a switch in the "
               "firmware): bf16 is "
               "several times slower than it could be, and on this model slower than f32";
    return NULL;
}

/* Leaf of the caches' descriptions, whose form both makers share; 0: none. */
static unsigned cache_leaf(void)
{
    unsigned a, b, c, d;

    if (!__get_cpuid(0, &a, &b, &c, &d))
        return 0;
    if (b == 0x756e6547)
        return 4;
    return __get_cpuid(0x80000001, &a, &b, &c, &d) && (c >> 22 & 1) ? 0x8000001d : 0;
}

size_t hapi_cpu_cache_bytes(void)
{
    unsigned leaf = cache_leaf(), a, b, c, d, threads = 1;
    size_t sum = 0;

    for (unsigned i = 0; leaf && i < 16 && __get_cpuid_count(leaf, i, &a, &b, &c, &d) && (a & 31); i++) {
        unsigned level = a >> 5 & 7, sharing = (a >> 14 & 0xfff) + 1;
        size_t bytes =
            ((size_t)(b >> 22) + 1) * ((b >> 12 & 0x3ff) + 1) * ((b & 0xfff) + 1) * ((size_t)c + 1);
        if (level == 2) {
            threads = sharing; /* of a core */
            sum += bytes;
        } else if (level == 3) {
            sum += bytes / (sharing > threads ? sharing / threads : 1);
        }
    }
    return sum;
}
