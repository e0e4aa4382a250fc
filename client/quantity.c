#include "quantity.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double RATE_MOST = 1e15;

/* Of a decimal number: strtod() takes spaces, signs, names and hexadecimal ones, too. */
static bool digits(const char *text)
{
    if (*text == '0' && (text[1] == 'x' || text[1] == 'X'))
        return false;
    return (*text >= '0' && *text <= '9') || (*text == '.' && text[1] >= '0' && text[1] <= '9');
}

bool quantity_rate(const char *text, double *out)
{
    static const struct {
        const char *unit;
        double bytes;
    } units[] = {{"", 1},         {"bit", 0.125}, {"kbit", 125}, {"Mbit", 125e3}, {"Gbit", 125e6},
                 {"Tbit", 125e9}, {"kB", 1e3},    {"MB", 1e6},   {"GB", 1e9}};
    char *end;

    if (!digits(text))
        return false;
    double v = strtod(text, &end);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (!strcmp(end, units[i].unit)) {
            v *= units[i].bytes;
            if (!(v > 0 && v < RATE_MOST))
                return false;
            *out = v;
            return true;
        }
    return false;
}

bool quantity_bytes(const char *text, double *out)
{
    static const char units[] = "KMGT";
    char *end;

    if (!digits(text))
        return false;
    double v = strtod(text, &end);
    const char *u = *end ? strchr(units, *end) : NULL;
    if (u && !end[1])
        v = ldexp(v, (int)(10 * (u - units + 1)));
    else if (*end)
        return false;
    *out = floor(v);
    return isfinite(v);
}

bool quantity_number(const char *text, double min, double max, double *out)
{
    char *end;

    if (!digits(text))
        return false;
    *out = strtod(text, &end);
    return !*end && *out >= min && *out <= max;
}
