#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels.h"

enum { TEXT_MAX = 64 << 10, DEPTH_MAX = 4, SIDE_MAX = 16384 };
#define OUT_PIXELS_MAX (64 << 20)

static const char *const interpolations[] = {"bilinear", "bicubic", "nearest"};

/* Brackets open at once; strings skipped. cJSON recurses by it. */
static bool too_deep(const char *s, size_t n)
{
    int depth = 0;
    bool quoted = false;

    for (size_t i = 0; i < n; i++) {
        if (quoted) {
            if (s[i] == '\\')
                i++;
            else if (s[i] == '"')
                quoted = false;
        } else if (s[i] == '"') {
            quoted = true;
        } else if (s[i] == '[' || s[i] == '{') {
            if (++depth > DEPTH_MAX)
                return true;
        } else if (s[i] == ']' || s[i] == '}') {
            depth--;
        }
    }
    return false;
}

static int bad(struct hapi_err *err, const char *key, const char *want)
{
    return hapi_err_set(err, HAPI_EINVAL, 0, "transform: \"%s\" must be %s", key, want);
}

static bool is_side(const cJSON *v, int32_t *out)
{
    if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0 && v->valuedouble <= SIDE_MAX) ||
        v->valuedouble != floor(v->valuedouble))
        return false;
    *out = (int32_t)v->valuedouble;
    return true;
}

/* N or [H, W], each 0..16384; with N *w is `alone` (0) or N (-1). */
static bool sides(const cJSON *v, int32_t *h, int32_t *w, int alone)
{
    if (cJSON_IsArray(v))
        return cJSON_GetArraySize(v) == 2 && is_side(v->child, h) && is_side(v->child->next, w) && *h && *w;
    if (!is_side(v, h))
        return false;
    *w = alone < 0 ? *h : alone;
    return true;
}

static bool is_float(const cJSON *v, float *out)
{
    if (!cJSON_IsNumber(v) || !(fabs(v->valuedouble) <= (double)FLT_MAX))
        return false;
    *out = (float)v->valuedouble;
    return true;
}

static bool three(const cJSON *v, float *out)
{
    if (!cJSON_IsArray(v) || cJSON_GetArraySize(v) != 3)
        return false;
    const cJSON *c = v->child;
    for (int i = 0; i < 3; i++, c = c->next)
        if (!is_float(c, &out[i]))
            return false;
    return true;
}

static int interpolation(const cJSON *v, struct hapi_transform *t, struct hapi_err *err)
{
    for (int i = 0; cJSON_IsString(v) && i < 3; i++)
        if (!strcmp(v->valuestring, interpolations[i])) {
            t->interpolation = (enum hapi_interpolation)i;
            return 0;
        }
    return bad(err, "interpolation", "\"bilinear\", \"bicubic\" or \"nearest\"");
}

static int member(const cJSON *v, struct hapi_transform *t, struct hapi_err *err)
{
    const char *key = v->string;

    if (!strcmp(key, "resize"))
        return sides(v, &t->resize_h, &t->resize_w, 0) ? 0 : bad(err, key, "0..16384, or [height, width]");
    if (!strcmp(key, "crop"))
        return sides(v, &t->crop_h, &t->crop_w, -1) && t->crop_h
                   ? 0
                   : bad(err, key, "1..16384, or [height, width]");
    if (!strcmp(key, "interpolation"))
        return interpolation(v, t, err);
    if (!strcmp(key, "mean"))
        return three(v, t->mean) ? 0 : bad(err, key, "three finite numbers");
    if (!strcmp(key, "std"))
        return three(v, t->std) && t->std[0] && t->std[1] && t->std[2]
                   ? 0
                   : bad(err, key, "three finite numbers other than 0");
    if (!strcmp(key, "scale"))
        return is_float(v, &t->scale) ? 0 : bad(err, key, "a finite number");
    if (!strcmp(key, "channels")) {
        if (!cJSON_IsString(v) || (strcmp(v->valuestring, "rgb") && strcmp(v->valuestring, "bgr")))
            return bad(err, key, "\"rgb\" or \"bgr\"");
        t->bgr = v->valuestring[0] == 'b';
        return 0;
    }
    if (!strcmp(key, "exif") || !strcmp(key, "draft")) {
        *(key[0] == 'e' ? &t->exif : &t->draft) = cJSON_IsTrue(v);
        return cJSON_IsBool(v) ? 0 : bad(err, key, "true or false");
    }
    return hapi_err_set(err, HAPI_EINVAL, 0, "transform: unknown key \"%.64s\"", key);
}

static int object(const cJSON *root, struct hapi_transform *t, struct hapi_err *err)
{
    int rc;

    if (!cJSON_IsObject(root))
        return hapi_err_set(err, HAPI_EFORMAT, 0, "transform: not a JSON object");
    for (const cJSON *v = root->child; v; v = v->next) {
        for (const cJSON *w = root->child; w != v; w = w->next)
            if (!strcmp(w->string, v->string))
                return hapi_err_set(err, HAPI_EINVAL, 0, "transform: \"%.64s\" is said twice", v->string);
        if ((rc = member(v, t, err)))
            return rc;
    }
    if (!t->crop_h)
        return hapi_err_set(err, HAPI_EINVAL, 0, "transform: \"crop\" (the output's size) is missing");
    if ((int64_t)t->crop_h * t->crop_w > OUT_PIXELS_MAX)
        return bad(err, "crop", "at most 64 Mpx");
    return 0;
}

int hapi_transform_parse(struct hapi_transform *out, const char *json, size_t size, struct hapi_err *err)
{
    struct hapi_transform t = {.scale = 1, .std = {1, 1, 1}};
    int rc;

    if (size > TEXT_MAX)
        return hapi_err_set(err, HAPI_EFORMAT, 0, "transform: more than 64 KiB of JSON");
    if (!size || memchr(json, '\0', size) || too_deep(json, size))
        return hapi_err_set(err, HAPI_EFORMAT, 0, "transform: not JSON of the expected form");
    char *copy = malloc(size + 1);
    if (!copy)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "transform: no memory for %zu bytes of JSON", size);
    memcpy(copy, json, size);
    copy[size] = '\0';
    const char *end = copy;
    cJSON *root = cJSON_ParseWithLengthOpts(copy, size + 1, &end, 1);
    if (root)
        rc = object(root, &t, err);
    else
        rc = hapi_err_set(err, HAPI_EFORMAT, 0, "transform: malformed JSON at byte %td", end - copy);
    cJSON_Delete(root);
    free(copy);
    if (!rc)
        *out = t;
    return rc;
}

/* "m.onnx" -> "m.transform.json"; other names get the suffix added. */
static int beside(char *buf, size_t size, const char *model_path)
{
    size_t n = strlen(model_path);

    if (n > 5 && !strcmp(model_path + n - 5, ".onnx"))
        n -= 5;
    return n < size && snprintf(buf, size, "%.*s.transform.json", (int)n, model_path) < (int)size
               ? 0
               : HAPI_EINVAL;
}

/* At most TEXT_MAX + 1 bytes: one too many is seen by the parser. */
static int file_read(int fd, const char *path, char *text, size_t *n, struct hapi_err *err)
{
    struct stat st;

    *n = 0;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        return hapi_err_set(err, HAPI_ESYS, 0, "the transform %s is not a regular file", path);
    while (*n <= TEXT_MAX) {
        ssize_t k = read(fd, text + *n, TEXT_MAX + 1 - *n);
        if (k < 0 && errno != EINTR)
            return hapi_err_errno(err, errno, "cannot read the transform %s", path);
        if (k == 0)
            break;
        *n += k > 0 ? (size_t)k : 0;
    }
    return 0;
}

int hapi_transform_load(struct hapi_transform *out, const char *path, const char *model_path,
                        struct hapi_err *err)
{
    char own[4096], *text;
    size_t n;
    int rc;

    if (!path && (!model_path || beside(own, sizeof own, model_path)))
        return hapi_err_set(err, HAPI_EINVAL, 0, "no path of a transform");
    path = path ? path : own;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        int why = errno;
        hapi_err_errno(err, why, "cannot open the transform %s", path);
        if (why == ENOENT && err)
            err->code = HAPI_ENOENT;
        return why == ENOENT ? HAPI_ENOENT : HAPI_ESYS;
    }
    text = malloc(TEXT_MAX + 1);
    if (!text) {
        close(fd);
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for the transform %s", path);
    }
    rc = file_read(fd, path, text, &n, err);
    close(fd);
    if (!rc && (rc = hapi_transform_parse(out, text, n, err)))
        hapi_err_context(err, "%s", path);
    free(text);
    return rc;
}

/* The shortest of up to nine digits that reads back as the same float; nine always do. */
static const char *number(char buf[32], float f)
{
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(buf, 32, "%.*g", digits, (double)f);
        if ((float)strtod(buf, NULL) == f)
            break;
    }
    for (char *c = buf; *c; c++)
        if (!strchr("0123456789+-e", *c)) /* the locale's decimal point */
            *c = '.';
    return buf;
}

static void pair(char buf[32], int32_t h, int32_t w, bool one)
{
    if (one)
        snprintf(buf, 32, "%d", h);
    else
        snprintf(buf, 32, "[%d,%d]", h, w);
}

int hapi_transform_text(const struct hapi_transform *t, char *buf, size_t size)
{
    char resize[32], crop[32], scale[32], mean[3][32], std[3][32];

    if ((unsigned)t->interpolation > HAPI_NEAREST)
        return HAPI_EINVAL;
    pair(resize, t->resize_h, t->resize_w, t->resize_w == 0);
    pair(crop, t->crop_h, t->crop_w, t->crop_h == t->crop_w);
    for (int i = 0; i < 3; i++) {
        number(mean[i], t->mean[i]);
        number(std[i], t->std[i]);
    }
    int n = snprintf(buf, size,
                     "{\"resize\":%s,\"interpolation\":\"%s\",\"crop\":%s,\"mean\":[%s,%s,%s],"
                     "\"std\":[%s,%s,%s],\"scale\":%s,\"channels\":\"%s\",\"exif\":%s%s}",
                     resize, interpolations[t->interpolation], crop, mean[0], mean[1], mean[2], std[0],
                     std[1], std[2], number(scale, t->scale), t->bgr ? "bgr" : "rgb",
                     t->exif ? "true" : "false", t->draft ? ",\"draft\":true" : "");
    return n >= 0 && (size_t)n < size ? n : HAPI_ETOOBIG;
}
