#include "plan_plot.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    WIDTH = 960,
    HEIGHT = 480,
    LEFT = 70,
    RIGHT = 170,
    TOP = 40,
    BOTTOM = 150,
    LABELS = 40,
    KEY_LINE = 18
};

static const char *const colours[HAPI_LOADS_N] = {
    [HAPI_LOAD_DISK] = "#8c564b",           [HAPI_LOAD_STORAGE] = "#1f77b4",
    [HAPI_LOAD_STORAGE_DEVICE] = "#17becf", [HAPI_LOAD_LINK] = "#d62728",
    [HAPI_LOAD_CLIENT_LINK] = "#ff9896",    [HAPI_LOAD_COMPUTE_TIER] = "#2ca02c",
    [HAPI_LOAD_COMPUTE_DEVICE] = "#98df8a", [HAPI_LOAD_TRAIN] = "#9467bd",
};

struct plot {
    FILE *f;
    const struct hapi_candidate **column; /* NULL: does not fit */
    size_t n;
    double low, high; /* of the axis: powers of ten */
};

const struct hapi_candidate *plan_best_of(const struct hapi_candidate *c, size_t n, int32_t cut)
{
    const struct hapi_candidate *best = NULL;

    for (size_t i = 0; i < n; i++)
        if (c[i].part.cut == cut && c[i].fits && (!best || c[i].predicted.epoch_s < best->predicted.epoch_s))
            best = &c[i];
    return best;
}

static double x_of(const struct plot *p, size_t i)
{
    return LEFT + (WIDTH - LEFT - RIGHT) * ((double)i + 0.5) / (double)p->n;
}

static double y_of(const struct plot *p, double s)
{
    double at = s > p->low ? log10(s / p->low) / log10(p->high / p->low) : 0;

    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * at;
}

/* Names come from files: text of an XML element. */
static void text_put(FILE *f, const char *s)
{
    for (; *s; s++)
        if (*s == '<' || *s == '&' || *s == '>')
            fprintf(f, "&#%d;", *s);
        else
            fputc((unsigned char)*s < ' ' ? ' ' : *s, f);
}

static void line_put(const struct plot *p, double (*value)(const struct hapi_prediction *, int), int load,
                     const char *colour, double width)
{
    bool open = false;

    for (size_t i = 0; i < p->n; i++) {
        double s = p->column[i] ? value(&p->column[i]->predicted, load) : 0;
        if (s <= 0) {
            fputs(open ? "\"/>\n" : "", p->f);
            open = false;
            continue;
        }
        if (!open)
            fprintf(p->f, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%g\" points=\"", colour,
                    width);
        fprintf(p->f, "%.1f,%.1f ", x_of(p, i), y_of(p, s));
        open = true;
    }
    fputs(open ? "\"/>\n" : "", p->f);
    for (size_t i = 0; i < p->n; i++) /* one alone is no line */
        if (p->column[i] && value(&p->column[i]->predicted, load) > 0)
            fprintf(p->f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%g\" fill=\"%s\"/>\n", x_of(p, i),
                    y_of(p, value(&p->column[i]->predicted, load)), width, colour);
}

static double load_of(const struct hapi_prediction *x, int load)
{
    return x->load_s[load];
}

static double epoch_of(const struct hapi_prediction *x, int load)
{
    (void)load;
    return x->epoch_s;
}

static void axes_put(const struct plot *p, const char *model)
{
    fprintf(
        p->f,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" "
        "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n<text x=\"%d\" y=\"22\" "
        "font-size=\"15\">",
        WIDTH, HEIGHT, LEFT);
    text_put(p->f, model);
    fputs(": seconds of an epoch that each stage works, by cut</text>\n", p->f);
    int decades = (int)lround(log10(p->high / p->low));
    for (int i = 0; i <= decades; i++) {
        double s = p->low * pow(10, i);
        fprintf(
            p->f,
            "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/><text x=\"%d\" y=\"%.1f\" "
            "text-anchor=\"end\">%g s</text>\n",
            LEFT, WIDTH - RIGHT, y_of(p, s), y_of(p, s), LEFT - 6, y_of(p, s) + 4, s);
    }
}

static void column_put(const struct plot *p, size_t i, const char *name, double share)
{
    double x = x_of(p, i), width = (WIDTH - LEFT - RIGHT) / (double)p->n;

    if (share > 0)
        fprintf(p->f, "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"#fff2ae\"/>\n",
                x - width / 2, TOP, width, HEIGHT - TOP - BOTTOM);
    if (p->n > LABELS && share <= 0 && i % (p->n / LABELS + 1))
        return;
    fprintf(p->f, "<text transform=\"translate(%.1f,%d) rotate(50)\" font-size=\"10\"%s>", x - 3,
            HEIGHT - BOTTOM + 12, share > 0 ? " font-weight=\"bold\"" : "");
    text_put(p->f, name);
    if (share > 0)
        fprintf(p->f, " (%.0f %%)", 100 * share);
    fputs("</text>\n", p->f);
}

static void key_put(const struct plot *p)
{
    int y = TOP + 10;

    fprintf(p->f, "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">epoch</text>\n", WIDTH - RIGHT + 12, y);
    for (int i = 0; i < HAPI_LOADS_N; i++) {
        bool any = false;
        for (size_t k = 0; k < p->n; k++)
            any |= p->column[k] && p->column[k]->predicted.load_s[i] > 0;
        if (any)
            fprintf(p->f, "<text x=\"%d\" y=\"%d\" fill=\"%s\">%s</text>\n", WIDTH - RIGHT + 12,
                    y += KEY_LINE, colours[i], hapi_load_name((enum hapi_load)i));
    }
}

static void range_find(struct plot *p)
{
    double most = 0, least = INFINITY;

    for (size_t i = 0; i < p->n; i++) {
        if (!p->column[i])
            continue;
        most = fmax(most, p->column[i]->predicted.epoch_s);
        for (int k = 0; k < HAPI_LOADS_N; k++)
            if (p->column[i]->predicted.load_s[k] > 0)
                least = fmin(least, p->column[i]->predicted.load_s[k]);
    }
    p->high = pow(10, ceil(log10(most > 0 ? most : 1)));
    p->low =
        fmax(pow(10, floor(log10(least < most ? least : most))), p->high * 1e-5); /* what matters is above */
    if (!(p->low < p->high))
        p->low = p->high / 10;
}

int plan_plot(const char *path, const struct hapi_profile *prof, const struct hapi_choice *choice,
              const struct hapi_candidate *c, size_t n, struct hapi_err *err)
{
    struct plot p = {.n = prof->n_cuts + 1};

    p.column = calloc(p.n, sizeof(struct hapi_candidate *));
    p.f = p.column ? fopen(path, "we") : NULL;
    if (!p.f) {
        free(p.column);
        return hapi_err_errno(err, errno, "cannot write %s", path);
    }
    for (size_t i = 0; i < p.n; i++)
        p.column[i] = plan_best_of(c, n, i ? (int32_t)prof->cuts[i - 1].index : HAPI_SPLIT_NONE);
    range_find(&p);
    axes_put(&p, prof->model);
    for (size_t i = 0; i < p.n; i++) {
        double share = 0;
        for (uint32_t k = 0; k < choice->n_parts; k++)
            if (choice->parts[k].cut == (i ? (int32_t)prof->cuts[i - 1].index : HAPI_SPLIT_NONE))
                share = choice->parts[k].share;
        column_put(&p, i, i ? prof->cuts[i - 1].name : "none", share);
    }
    for (int k = 0; k < HAPI_LOADS_N; k++)
        line_put(&p, load_of, k, colours[k], 1.5);
    line_put(&p, epoch_of, 0, "black", 2.5);
    key_put(&p);
    fputs("</svg>\n", p.f);
    free(p.column);
    bool bad = ferror(p.f);
    return fclose(p.f) || bad ? hapi_err_errno(err, errno, "cannot write %s", path) : HAPI_OK;
}
