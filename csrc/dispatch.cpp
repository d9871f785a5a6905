#include "dispatch.h"

#if defined(FEDMQ_X86_LEVELS)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fedmq {

extern const KernelTable kernel_table_base;
#if defined(FEDMQ_X86_LEVELS)
extern const KernelTable kernel_table_avx2;
extern const KernelTable kernel_table_avx512;
#endif

namespace {

struct Level {
    const char* name;
    const KernelTable* table;
    bool (*supported)();
};

bool always() { return true; }

#if defined(FEDMQ_X86_LEVELS)
// The compiler's checks include the operating system's: registers that it does not save do not count.
bool has_avx2() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;  // older GCCs cannot ask
    return f16c && __builtin_cpu_supports("avx2");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

// Best first.
constexpr Level kLevels[] = {
#if defined(FEDMQ_X86_LEVELS)
    {"avx512", &kernel_table_avx512, has_avx512},
    {"avx2", &kernel_table_avx2, has_avx2},
#endif
    {"base", &kernel_table_base, always},
};

const KernelTable* choose() {
    const char* wish = std::getenv("FEDMQ_ISA");
    const bool any = wish == nullptr || *wish == '\0';
    std::string usable;
    for (const Level& level : kLevels) {
        if (!level.supported()) {
            if (!any && std::string(wish) == level.name) {
                throw std::invalid_argument("FEDMQ_ISA is '" + std::string(wish) +
                                            "', which this CPU lacks; unset it to get the best level that it has");
            }
            continue;
        }
        if (any || std::string(wish) == level.name) return level.table;
        usable += usable.empty() ? level.name : std::string(", ") + level.name;
    }
    throw std::invalid_argument("FEDMQ_ISA must be one of " + usable + " on this machine, not '" + wish + "'");
}

}  // namespace

const KernelTable& kernels() {
    static const KernelTable* const table = choose();
    return *table;
}

}  // namespace fedmq
