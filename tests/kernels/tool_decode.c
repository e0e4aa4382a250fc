/*
 * tool_decode: one transform over many files, for test_decode_pil.py and for timing.
 *
 *     tool_decode TRANSFORM.json OUT FILE.jpg...    f32 (H,W,3) of each file one after the other into OUT
 *     tool_decode --time N TRANSFORM.json FILE.jpg...   min and median ms/image of N rounds, one thread
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "kernels.h"

static void *load(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    uint8_t *p = malloc(64 << 20);

    if (!f || !p) {
        perror(path);
        exit(1);
    }
    *n = fread(p, 1, 64 << 20, f);
    fclose(f);
    p = realloc(p, *n + 1);
    if (!p)
        exit(1);
    return p;
}

static int by_value(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static int time_files(struct hapi_decoder *d, const struct hapi_transform *t, int rounds, char **files, int n,
                      float *dst)
{
    struct hapi_err err = {0};
    double *ms = malloc((size_t)rounds * sizeof *ms);

    for (int i = 0; ms && i < n; i++) {
        size_t size;
        void *jpeg = load(files[i], &size);
        for (int r = -2; r < rounds; r++) {
            int64_t t0 = hapi_clock_ns();
            if (hapi_decode(d, t, jpeg, size, dst, &err)) {
                fprintf(stderr, "%s: %s\n", files[i], err.text);
                return 1;
            }
            if (r >= 0)
                ms[r] = (double)(hapi_clock_ns() - t0) * 1e-6;
        }
        qsort(ms, (size_t)rounds, sizeof *ms, by_value);
        printf("{\"file\": \"%s\", \"bytes\": %zu, \"min_ms\": %.3f, \"median_ms\": %.3f, \"n\": %d}\n",
               files[i], size, ms[0], ms[rounds / 2], rounds);
        free(jpeg);
    }
    free(ms);
    return 0;
}

int main(int argc, char **argv)
{
    struct hapi_transform t;
    struct hapi_decoder *d;
    struct hapi_err err = {0};
    int rounds = 0, rc = 0;

    if (argc > 3 && !strcmp(argv[1], "--time")) {
        rounds = atoi(argv[2]);
        argv += 2;
        argc -= 2;
    }
    if (argc < 3 + !rounds || rounds < 0) {
        fprintf(stderr, "usage: tool_decode [--time N] TRANSFORM.json [OUT] FILE.jpg...\n");
        return 2;
    }
    if (hapi_transform_load(&t, argv[1], NULL, &err) || hapi_decoder_new(&d, 0, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    size_t n = (size_t)t.crop_h * (size_t)t.crop_w * 3;
    float *dst = malloc(n * sizeof *dst);
    if (!dst)
        return 1;
    if (rounds) {
        rc = time_files(d, &t, rounds, argv + 2, argc - 2, dst);
    } else {
        FILE *out = fopen(argv[2], "wb");
        for (int i = 3; i < argc && out && !rc; i++) {
            size_t size;
            void *jpeg = load(argv[i], &size);
            rc = hapi_decode(d, &t, jpeg, size, dst, &err) != 0;
            if (rc)
                fprintf(stderr, "%s: %s %s\n", argv[i], hapi_err_name(err.code), err.text);
            else
                rc = fwrite(dst, sizeof *dst, n, out) != n;
            free(jpeg);
        }
        if (!out || fclose(out))
            rc = 1;
    }
    free(dst);
    hapi_decoder_free(d);
    return rc;
}
