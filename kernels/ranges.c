#include "ranges.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { M_METADATA = 14, NUMBER_MAX = 32 };

static const char key[] = "hapi.ranges";
/* Beyond these no scale is of use, and products of scales would leave f32. */
static const float magnitude_max = 1e15F, magnitude_min = 1e-15F;

/* ------------------------------------------------------------------ reading */

static bool entry_split(struct hapi_view entry, struct hapi_view *name, struct hapi_view *text)
{
    struct hapi_pb_field f;
    int more;

    *name = *text = (struct hapi_view){NULL, 0};
    while ((more = hapi_pb_next(&entry, &f)) > 0)
        if (f.wire == HAPI_PB_LEN && (f.number == 1 || f.number == 2))
            *(f.number == 1 ? name : text) = f.bytes;
    return more == 0;
}

bool hapi_ranges_is(struct hapi_view entry)
{
    struct hapi_view name, text;

    return entry_split(entry, &name, &text) && name.n == sizeof key - 1 && !memcmp(name.p, key, name.n);
}

/* Takes a decimal number and the blank after it off the front of the line. */
static bool number(struct hapi_view *line, float *out)
{
    char text[NUMBER_MAX + 1];
    size_t n = 0;
    char *end;

    while (n < line->n && n < NUMBER_MAX && line->p[n] != ' ' && strchr("0123456789+-.e", line->p[n]) &&
           line->p[n])
        n++;
    if (!n || n == line->n || line->p[n] != ' ')
        return false;
    memcpy(text, line->p, n);
    text[n] = '\0';
    *out = strtof(text, &end);
    line->p += n + 1;
    line->n -= n + 1;
    return !*end && fabsf(*out) <= magnitude_max; /* false for a NaN */
}

static int line_read(struct hapi_range *r, struct hapi_view line, struct hapi_arena *arena,
                     struct hapi_err *err)
{
    char *name;

    if (!number(&line, &r->lo) || !number(&line, &r->hi) || !line.n)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "not `LEAST GREATEST NAME`, or a number out of bounds");
    if (r->lo > 0 || r->hi < 0 || fmaxf(-r->lo, r->hi) < magnitude_min)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "%g to %g is no range around zero", (double)r->lo,
                            (double)r->hi);
    for (size_t i = 0; i < line.n; i++)
        if (line.p[i] < 0x20 || line.p[i] == 0x7f)
            return hapi_err_set(err, HAPI_EFORMAT, 0, "control character in a name");
    if (line.n > HAPI_ONNX_NAME_MAX)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "a name of %zu bytes", line.n);
    name = hapi_arena_strndup(arena, (const char *)line.p, line.n);
    r->name = name;
    return name ? 0 : hapi_err_set(err, HAPI_ETOOBIG, 0, "more than the parser's memory holds");
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct hapi_range *)a)->name, ((const struct hapi_range *)b)->name);
}

static int lines_read(struct hapi_ranges *r, struct hapi_view text, struct hapi_arena *arena,
                      struct hapi_err *err)
{
    size_t lines = 0;

    for (size_t i = 0; i < text.n; i++)
        lines += text.p[i] == '\n';
    r->list = hapi_arena_array(arena, lines + 1, sizeof *r->list);
    if (!r->list)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "more than the parser's memory holds");
    while (text.n) {
        const uint8_t *end = memchr(text.p, '\n', text.n);
        struct hapi_view line = {text.p, end ? (size_t)(end - text.p) : 0};
        if (!end)
            return hapi_err_set(err, HAPI_EFORMAT, 0, "the last line does not end");
        int rc = line_read(&r->list[r->n], line, arena, err);
        if (rc)
            return hapi_err_context(err, "line %zu", r->n + 1);
        r->n++;
        text.p += line.n + 1;
        text.n -= line.n + 1;
    }
    qsort(r->list, r->n, sizeof *r->list, by_name);
    for (size_t i = 1; i < r->n; i++)
        if (!strcmp(r->list[i - 1].name, r->list[i].name))
            return hapi_err_set(err, HAPI_EFORMAT, 0, "\"%.150s\" is in it twice", r->list[i].name);
    return 0;
}

int hapi_ranges_read(struct hapi_ranges *r, struct hapi_view entry, struct hapi_arena *arena,
                     struct hapi_err *err)
{
    struct hapi_view name, text;

    if (!hapi_ranges_is(entry) || !entry_split(entry, &name, &text))
        return 0;
    if (r->list)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "metadata %s is in the file twice", key);
    int rc = lines_read(r, text, arena, err);
    return rc ? hapi_err_context(err, "metadata %s", key) : 0;
}

const struct hapi_range *hapi_ranges_find(const struct hapi_ranges *r, const char *name)
{
    struct hapi_range wanted = {.name = name};

    return r->n ? bsearch(&wanted, r->list, r->n, sizeof *r->list, by_name) : NULL;
}

size_t hapi_model_ranges(const struct hapi_model *m, const struct hapi_range **out)
{
    *out = m->onnx.ranges.list;
    return m->onnx.ranges.n;
}

/* ------------------------------------------------------------------ writing */

void hapi_ranges_put(struct hapi_pb_out *model, const struct hapi_range *list, const bool *keep, size_t n)
{
    struct hapi_pb_out text = {.p = NULL}, entry = {.p = NULL};
    char numbers[2 * NUMBER_MAX];

    for (size_t i = 0; i < n; i++) {
        if (keep && !keep[i])
            continue;
        int k = snprintf(numbers, sizeof numbers, "%.6g %.6g ", (double)list[i].lo, (double)list[i].hi);
        hapi_pb_put(&text, numbers, (size_t)k);
        hapi_pb_put(&text, list[i].name, strlen(list[i].name));
        hapi_pb_put(&text, "\n", 1);
    }
    if (text.n) {
        hapi_pb_put_string(&entry, 1, key);
        hapi_pb_put_bytes(&entry, 2, text.p, text.n);
        hapi_pb_put_bytes(model, M_METADATA, entry.p, entry.n);
    }
    model->failed |= text.failed || entry.failed;
    free(entry.p);
    free(text.p);
}

int hapi_model_with_ranges(const struct hapi_model *m, const struct hapi_range *list, size_t n, void **bytes,
                           size_t *size, struct hapi_err *err)
{
    struct hapi_pb_out out = {.p = NULL};
    struct hapi_view in = m->bytes;
    struct hapi_pb_field f;

    /* The file's own fields as the bytes that they are; all of them have been read once. */
    for (const uint8_t *from = in.p; hapi_pb_next(&in, &f) > 0; from = in.p)
        if (f.number != M_METADATA || f.wire != HAPI_PB_LEN || !hapi_ranges_is(f.bytes))
            hapi_pb_put(&out, from, (size_t)(in.p - from));
    hapi_ranges_put(&out, list, NULL, n);
    if (out.failed) {
        free(out.p);
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for a copy of the model");
    }
    *bytes = out.p;
    *size = out.n;
    return 0;
}
