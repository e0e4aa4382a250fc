#include <stdlib.h>

#include "planner.h"

/* Relative L2 error of features that a wire dtype brings (docs/benchmarks.md, "Wire dtypes"). */
static const struct {
    enum hapi_wire wire;
    double error;
} errors[] = {{HAPI_WIRE_F32, 0}, {HAPI_WIRE_F16, 5e-4}, {HAPI_WIRE_BF16, 4e-3}, {HAPI_WIRE_I8, 1.2e-2}};

bool hapi_wires_within(uint32_t *wires, const char *text)
{
    enum hapi_wire name;
    char *end;
    double most = strtod(text, &end);
    size_t n = sizeof errors / sizeof *errors;

    if (!hapi_wire_from_name(&name, text)) {
        for (size_t i = 0; i < n; i++)
            if (errors[i].wire == name)
                most = errors[i].error;
    } else if (end == text || *end || !(most >= 0)) {
        return false;
    }
    *wires = 0;
    for (size_t i = 0; i < n; i++)
        if (errors[i].error <= most)
            *wires |= 1u << errors[i].wire;
    return true;
}
