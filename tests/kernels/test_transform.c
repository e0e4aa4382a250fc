#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "kernels.h"

static int parse(struct hapi_transform *t, const char *json, struct hapi_err *err)
{
    size_t n = strlen(json);
    char *exact = malloc(n ? n : 1); /* not terminated */
    REQUIRE(exact);
    memcpy(exact, json, n);
    int rc = hapi_transform_parse(t, exact, n, err);
    free(exact);
    return rc;
}

static void example__every_key__as_written(void)
{
    struct hapi_transform t;
    struct hapi_err err = {0};
    int rc =
        parse(&t,
              "{\"resize\": 256, \"interpolation\": \"bicubic\", \"crop\": 224, \"mean\": [127,127,127], "
              "\"std\": [128,128,128], \"scale\": 1, \"channels\": \"rgb\", \"exif\": false}\n",
              &err);
    CHECKF(!rc, "%s", err.text);
    CHECK(t.resize_h == 256 && t.resize_w == 0 && t.crop_h == 224 && t.crop_w == 224);
    CHECK(t.interpolation == HAPI_BICUBIC && t.scale == 1 && !t.bgr && !t.exif);
    CHECK(t.mean[2] == 127 && t.std[0] == 128);
    CHECK(!parse(&t, "{\"crop\":[8,9],\"resize\":[10,11],\"channels\":\"bgr\",\"exif\":true}", &err));
    CHECK(t.crop_h == 8 && t.crop_w == 9 && t.resize_h == 10 && t.resize_w == 11 && t.bgr && t.exif &&
          !t.draft);
    CHECK(!parse(&t, "{\"crop\":8,\"draft\":true}", &err) && t.draft && !t.exif);
    CHECK(!parse(&t, "{\"crop\":8,\"draft\":false}", &err) && !t.draft);
    CHECK(t.interpolation == HAPI_BILINEAR && t.scale == 1 && t.mean[0] == 0 && t.std[1] == 1);
}

static void malformed_or_strange__refused_and_out_untouched(void)
{
    static const struct {
        const char *json;
        int code;
        const char *says;
    } bad[] = {
        {"", HAPI_EFORMAT, "JSON"},
        {"{", HAPI_EFORMAT, "malformed"},
        {"[]", HAPI_EFORMAT, "object"},
        {"{\"crop\":8} x", HAPI_EFORMAT, "malformed"},
        {"{\"crop\":[[[[[8]]]]]}", HAPI_EFORMAT, "JSON"},
        {"{}", HAPI_EINVAL, "crop"},
        {"{\"crop\":0}", HAPI_EINVAL, "crop"},
        {"{\"crop\":-1}", HAPI_EINVAL, "crop"},
        {"{\"crop\":8.5}", HAPI_EINVAL, "crop"},
        {"{\"crop\":16385}", HAPI_EINVAL, "crop"},
        {"{\"crop\":16384}", HAPI_EINVAL, "64 Mpx"},
        {"{\"crop\":1e99}", HAPI_EINVAL, "crop"},
        {"{\"crop\":\"8\"}", HAPI_EINVAL, "crop"},
        {"{\"crop\":[8]}", HAPI_EINVAL, "crop"},
        {"{\"crop\":[8,0]}", HAPI_EINVAL, "crop"},
        {"{\"crop\":8,\"resize\":[0,4]}", HAPI_EINVAL, "resize"},
        {"{\"crop\":8,\"resize\":[4,4,4]}", HAPI_EINVAL, "resize"},
        {"{\"crop\":8,\"crop\":8}", HAPI_EINVAL, "twice"},
        {"{\"crop\":8,\"Resize\":8}", HAPI_EINVAL, "Resize"},
        {"{\"crop\":8,\"std\":[1,0,1]}", HAPI_EINVAL, "std"},
        {"{\"crop\":8,\"std\":[1,1e-60,1]}", HAPI_EINVAL, "std"},
        {"{\"crop\":8,\"mean\":[1,1]}", HAPI_EINVAL, "mean"},
        {"{\"crop\":8,\"mean\":[1,1e39,1]}", HAPI_EINVAL, "mean"},
        {"{\"crop\":8,\"mean\":[1,1e999,1]}", HAPI_EINVAL, "mean"},
        {"{\"crop\":8,\"scale\":null}", HAPI_EINVAL, "scale"},
        {"{\"crop\":8,\"channels\":\"rbg\"}", HAPI_EINVAL, "channels"},
        {"{\"crop\":8,\"exif\":1}", HAPI_EINVAL, "exif"},
        {"{\"crop\":8,\"draft\":\"half\"}", HAPI_EINVAL, "draft"},
        {"{\"crop\":8,\"interpolation\":\"lanczos\"}", HAPI_EINVAL, "interpolation"},
        {"{\"crop\":8,\"interpolation\":1}", HAPI_EINVAL, "interpolation"},
    };
    struct hapi_transform t, before;
    struct hapi_err err;

    memset(&t, 0x5a, sizeof t);
    before = t;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(&err, 0, sizeof err);
        int rc = parse(&t, bad[i].json, &err);
        CHECKF(rc == bad[i].code && err.code == rc, "%s: %d", bad[i].json, rc);
        CHECKF(strstr(err.text, bad[i].says), "%s: %s", bad[i].json, err.text);
        CHECK(!memcmp(&t, &before, sizeof t));
    }
    CHECK(hapi_transform_parse(&t, "{\"crop\":8}\0", 11, NULL) == HAPI_EFORMAT);
    char *large = malloc(70000);
    REQUIRE(large);
    memset(large, ' ', 70000);
    memcpy(large, "{\"crop\":8}", 10);
    CHECK(hapi_transform_parse(&t, large, 65536, NULL) == HAPI_OK);
    CHECK(hapi_transform_parse(&t, large, 65537, NULL) == HAPI_EFORMAT);
    free(large);
}

static void text__same_transform_in_other_words__same_bytes(void)
{
    struct hapi_transform a, b;
    char x[512], y[512];
    REQUIRE(!parse(&a, "{\"crop\": 224, \"scale\": 1.0, \"mean\": [0.5, 1e0, 2]}", NULL));
    REQUIRE(!parse(
        &b, "{ \"mean\":[5e-1,1,2.000],\"exif\":false,\"crop\":[224,224],\"scale\":1,\"resize\":0 }", NULL));
    int n = hapi_transform_text(&a, x, sizeof x), m = hapi_transform_text(&b, y, sizeof y);
    CHECK(n > 0 && n == m && !strcmp(x, y) && (int)strlen(x) == n);
    CHECK(!strcmp(x, "{\"resize\":0,\"interpolation\":\"bilinear\",\"crop\":224,\"mean\":[0.5,1,2],"
                     "\"std\":[1,1,1],\"scale\":1,\"channels\":\"rgb\",\"exif\":false}"));
    a.draft = true; /* another transform: another key of all that is kept by it */
    CHECK(hapi_transform_text(&a, y, sizeof y) == n + 13 && !strncmp(x, y, (size_t)n - 1));
    CHECK(!strcmp(y + n - 1, ",\"draft\":true}"));
    a.draft = false;
    for (int size = 0; size <= n; size++)
        CHECK(hapi_transform_text(&a, x, (size_t)size) == HAPI_ETOOBIG);
    CHECK(hapi_transform_text(&a, x, (size_t)n + 1) == n);
}

static int same(const struct hapi_transform *a, const struct hapi_transform *b)
{
    return a->resize_h == b->resize_h && a->resize_w == b->resize_w && a->crop_h == b->crop_h &&
           a->crop_w == b->crop_w && a->interpolation == b->interpolation && a->bgr == b->bgr &&
           a->exif == b->exif && a->draft == b->draft && !memcmp(&a->scale, &b->scale, 4) &&
           !memcmp(a->mean, b->mean, 12) && !memcmp(a->std, b->std, 12);
}

static float any_float(uint64_t *x)
{
    float f;
    do {
        *x = *x * 6364136223846793005u + 1442695040888963407u;
        uint32_t u = (uint32_t)(*x >> 32);
        memcpy(&f, &u, 4);
    } while (!isfinite(f) || f == 0);
    return f;
}

static void text__any_finite_floats__parse_gives_them_back_bit_for_bit(void)
{
    uint64_t x = 1;
    for (int i = 0; i < 20000; i++) {
        struct hapi_transform a = {.crop_h = 1 + i % 300, .crop_w = 1 + i % 77, .resize_h = i % 500}, b;
        char text[512];
        a.resize_w = i % 3 && a.resize_h ? i % 411 : 0;
        a.interpolation = (enum hapi_interpolation)(i % 3);
        a.bgr = i & 4;
        a.exif = i & 8;
        a.draft = i & 16;
        a.scale = i % 5 ? any_float(&x) : -0.f;
        for (int c = 0; c < 3; c++) {
            a.mean[c] = any_float(&x);
            a.std[c] = any_float(&x);
        }
        int n = hapi_transform_text(&a, text, sizeof text);
        REQUIRE(n > 0);
        CHECKF(!hapi_transform_parse(&b, text, (size_t)n, NULL) && same(&a, &b), "%s", text);
    }
}

static void load__beside_the_model_or_by_path(void)
{
    char dir[] = "/tmp/hapi-transform-XXXXXX", path[128], model[128];
    struct hapi_transform t;
    struct hapi_err err = {0};
    REQUIRE(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/m.transform.json", dir);
    snprintf(model, sizeof model, "%s/m.onnx", dir);
    CHECK(hapi_transform_load(&t, NULL, model, &err) == HAPI_ENOENT && strstr(err.text, "m.transform.json"));
    FILE *f = fopen(path, "w");
    REQUIRE(f && fputs("{\"crop\": 33}", f) > 0 && !fclose(f));
    CHECK(!hapi_transform_load(&t, NULL, model, &err) && t.crop_w == 33);
    CHECK(!hapi_transform_load(&t, path, NULL, &err));
    CHECK(hapi_transform_load(&t, NULL, NULL, &err) == HAPI_EINVAL);
    CHECK(hapi_transform_load(&t, dir, NULL, &err) == HAPI_ESYS);
    f = fopen(path, "w");
    REQUIRE(f && fputs("{\"crop\": 0}", f) > 0 && !fclose(f));
    CHECK(hapi_transform_load(&t, path, NULL, &err) == HAPI_EINVAL && strstr(err.text, path));
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    CASE(example__every_key__as_written);
    CASE(malformed_or_strange__refused_and_out_untouched);
    CASE(text__same_transform_in_other_words__same_bytes);
    CASE(text__any_finite_floats__parse_gives_them_back_bit_for_bit);
    CASE(load__beside_the_model_or_by_path);
    return check_done();
}
