#include <math.h>

#include "check.h"
#include "profile.h"

/* Every required key once. */
static const char *const text =
    "{\"model\":\"net\",\"images\":1000,\"train_batch\":64,\"freeze\":7,\"train_s\":1e-4,\"source_bytes\":"
    "110000,"
    "\"source_prepare_s\":2e-3,\"read_s\":1e-4,\"storage_prepare_s\":3e-3,\"bandwidth_Bps\":125e6,\"epochs\":"
    "3,"
    "\"storage_cache\":0,\"compute_cache\":1e6,\"latency_s\":1e-3,\"nodes\":2,\"storage_memory\":1e9,"
    "\"compute_memory\":1e9,\"cuts\":["
    "{\"index\":2,\"name\":\"conv\",\"wire_bytes\":{\"f32\":4000,\"f16\":2000},\"storage_s\":0.01,\"compute_"
    "s\":0.03,"
    "\"storage_memory\":{\"fixed\":100,\"per_image\":10},\"compute_memory\":{\"fixed\":100,\"per_image\":20}}"
    ","
    "{\"index\":7,\"name\":\"flat\",\"wire_bytes\":{\"f32\":400},\"storage_s\":0.05,\"compute_s\":0,"
    "\"storage_memory\":{\"fixed\":200,\"per_image\":10},\"compute_memory\":{\"fixed\":0,\"per_image\":0}}]}";

/* The text with the first `from` after `after` replaced. */
static char *edited(const char *after, const char *from, const char *to)
{
    const char *at = strstr(strstr(text, after), from);
    char *out = malloc(strlen(text) + strlen(to) + 1);

    REQUIRE(at && out);
    memcpy(out, text, (size_t)(at - text));
    strcpy(out + (at - text), to);
    strcat(out, at + strlen(from));
    return out;
}

static struct hapi_profile *parsed(const char *json)
{
    struct hapi_profile *p = NULL;
    struct hapi_err err = {0};
    int rc = hapi_profile_parse(&p, json, strlen(json), &err);

    CHECKF(!rc, "%s", err.text);
    REQUIRE(p);
    return p;
}

static struct hapi_profile *parsed_edit(const char *from, const char *to)
{
    char *json = edited("", from, to);
    struct hapi_profile *p = parsed(json);

    free(json);
    return p;
}

static void required_keys__all_there__read(void)
{
    struct hapi_profile *p = parsed(text);

    CHECK(!strcmp(p->model, "net") && p->images == 1000 && p->train_batch == 64 && p->epochs == 3);
    CHECK(p->nodes == 2 && p->freeze == 7 && p->bandwidth_Bps == 125e6 && p->source_bytes == 110000);
    CHECK(p->latency_s == 1e-3 && p->compute_cache == 1e6 && p->storage_cache == 0);
    CHECK(hapi_curve_at(&p->train_s, 64) == 1e-4 && hapi_curve_at(&p->read_s, 1) == 1e-4);
    CHECK(p->n_cuts == 2 && p->cuts[0].index == 2 && !strcmp(p->cuts[1].name, "flat"));
    CHECK(p->cuts[0].wire_bytes[HAPI_WIRE_F16] == 2000 && p->cuts[1].wire_bytes[HAPI_WIRE_F16] == 0);
    CHECK(p->cuts[1].storage_memory.fixed == 200 && p->cuts[0].compute_memory.per_image == 20);
    CHECK(hapi_profile_cut_find(p, 7) == &p->cuts[1] && !hapi_profile_cut_find(p, 3));
    hapi_profile_free(p);
}

static void optional_keys__left_out__mean_absent(void)
{
    struct hapi_profile *p = parsed(text);

    CHECK(!p->hash && !p->host && !p->dtype && !p->date && !p->n_node_list);
    CHECK(p->client_bandwidth_Bps == 0 && p->jitter == 0 && p->request_images == 0);
    CHECK(p->storage.cores == 1 && p->storage.contention == 0 && p->storage.devices == 0);
    CHECK(p->compute.cores == 1 && !p->compute.train_shares);
    CHECK(hapi_profile_convert(p, &p->cuts[0], HAPI_WIRE_F16, 8) == 0);
    CHECK(hapi_profile_serialise(p, &p->cuts[0], 8) == 0);
    hapi_profile_free(p);
}

static void optional_keys__said__read(void)
{
    struct hapi_profile *p = parsed_edit(
        "\"model\"",
        "\"tiers\":{\"storage\":{\"cores\":16,\"contention\":0.5,\"devices\":1},"
        "\"compute\":{\"cores\":4,\"train_shares\":true}},\"client_bandwidth_Bps\":1e9,\"jitter\":0.25,"
        "\"request_images\":32,\"convert_s\":{\"f16\":1e-5},\"serialise_s\":2e-5,\"hash\":\"ab\",\"later\":[{"
        "}],"
        "\"node_list\":[{\"name\":\"a\"},{\"name\":\"b\",\"bandwidth_Bps\":5,\"cores\":2,\"speed\":0.5}],"
        "\"model\"");

    CHECK(p->storage.cores == 16 && p->storage.contention == 0.5 && p->storage.devices == 1);
    CHECK(p->compute.cores == 4 && p->compute.contention == 0 && p->compute.train_shares);
    CHECK(p->client_bandwidth_Bps == 1e9 && p->jitter == 0.25 && p->request_images == 32);
    CHECK(p->n_node_list == 2 && p->node_list[0].bandwidth_Bps == 125e6 && p->node_list[0].cores == 16);
    CHECK(p->node_list[0].speed == 1 && p->node_list[1].bandwidth_Bps == 5 && p->node_list[1].cores == 2);
    CHECK(p->node_list[1].speed == 0.5 && !strcmp(p->node_list[1].name, "b") && !strcmp(p->hash, "ab"));
    CHECK(hapi_profile_convert(p, &p->cuts[0], HAPI_WIRE_F16, 8) == 1e-5);
    CHECK(hapi_profile_serialise(p, &p->cuts[1], 8) == 2e-5);
    hapi_profile_free(p);
}

static void conversion__said_by_a_cut__is_that_cuts(void)
{
    struct hapi_profile *p =
        parsed_edit("\"cuts\":[{", "\"convert_s\":{\"f16\":1e-5},\"serialise_s\":1,\"cuts\":[{"
                                   "\"convert_s\":{\"f16\":{\"1\":3e-5,\"4\":0}},\"serialise_s\":0,");

    CHECK(hapi_profile_convert(p, &p->cuts[0], HAPI_WIRE_F16, 1) == 3e-5);
    CHECK(hapi_profile_convert(p, &p->cuts[0], HAPI_WIRE_F16, 4) == 0);
    CHECK(hapi_profile_convert(p, &p->cuts[1], HAPI_WIRE_F16, 4) == 1e-5);
    CHECK(hapi_profile_serialise(p, &p->cuts[0], 1) == 0 && hapi_profile_serialise(p, &p->cuts[1], 1) == 1);
    hapi_profile_free(p);
}

static void tables__any_micro_batch__batch_time_interpolated(void)
{
    struct hapi_profile *p = parsed_edit("\"train_s\":1e-4", "\"train_s\":{\"8\":2,\"2\":4,\"32\":3}");
    const struct hapi_curve *c = &p->train_s;

    CHECK(c->n == 3 && c->points[0].batch == 2 && c->points[2].batch == 32);
    CHECK(hapi_curve_at(c, 2) == 4 && hapi_curve_at(c, 8) == 2 && hapi_curve_at(c, 32) == 3);
    CHECK(hapi_curve_at(c, 1) == 4 && hapi_curve_at(c, 1000) == 3);
    CHECK(fabs(hapi_curve_at(c, 5) - 12.0 / 5) < 1e-12);   /* half way from 8 s to 16 s a batch */
    CHECK(fabs(hapi_curve_at(c, 20) - 56.0 / 20) < 1e-12); /* half way from 16 s to 96 s */
    hapi_profile_free(p);
}

static void source_compute__not_said__from_the_first_cut(void)
{
    struct hapi_profile *p = parsed(text);

    /* The first cut has 0.01 s before it on a node; what follows takes 0.03 s here and 0.04 s there. */
    CHECK(fabs(hapi_profile_source_compute(p, 8) - (0.03 + 0.01 * 0.75)) < 1e-12);
    hapi_profile_free(p);
    p = parsed_edit("\"model\"", "\"source_compute_s\":0.5,\"model\"");
    CHECK(hapi_profile_source_compute(p, 8) == 0.5);
    hapi_profile_free(p);
    p = parsed_edit("\"storage_s\":0.01", "\"storage_s\":0");
    CHECK(hapi_profile_source_compute(p, 8) == 0.03);
    hapi_profile_free(p);
}

static void cuts__in_any_order__sorted(void)
{
    static const char *const from = "\"index\":2,\"name\":\"conv\"";
    char *json = edited("", from, "\"index\":7,\"name\":\"flat\""),
         *second = strstr(json, "\"index\":7,\"name\":\"flat\",");
    struct hapi_profile *p;

    second = strstr(second + 1, "\"index\":7,\"name\":\"flat\"");
    REQUIRE(second);
    for (size_t i = 0; from[i]; i++)
        second[i] = from[i];
    p = parsed(json);
    CHECK(p->cuts[0].index == 2 && !strcmp(p->cuts[0].name, "conv") && p->cuts[0].storage_s.s == 0.05);
    CHECK(p->cuts[1].index == 7 && !strcmp(p->cuts[1].name, "flat") && p->cuts[1].storage_s.s == 0.01);
    free(json);
    hapi_profile_free(p);
}

/* The first `from` after `after` replaced by `to` is refused, and the error has `says` in it. */
static void refused_after(const char *after, const char *from, const char *to, const char *says)
{
    char *json = edited(after, from, to);
    struct hapi_profile *p = (struct hapi_profile *)1;
    struct hapi_err err = {0};
    int rc = hapi_profile_parse(&p, json, strlen(json), &err);

    CHECKF(rc == HAPI_EINVAL || rc == HAPI_EFORMAT, "%s -> %s gives %d", from, to, rc);
    CHECKF(rc == err.code && strstr(err.text, says), "%s -> %s says: %s", from, to, err.text);
    CHECK(p == (struct hapi_profile *)1);
    free(json);
}

static void refused(const char *from, const char *to, const char *says)
{
    refused_after("", from, to, says);
}

static void required_keys__each_missing__named(void)
{
    static const char *const top[] = {"model",
                                      "images",
                                      "train_batch",
                                      "freeze",
                                      "train_s",
                                      "source_bytes",
                                      "source_prepare_s",
                                      "read_s",
                                      "storage_prepare_s",
                                      "bandwidth_Bps",
                                      "epochs",
                                      "storage_cache",
                                      "compute_cache",
                                      "latency_s",
                                      "nodes",
                                      "storage_memory",
                                      "compute_memory",
                                      "cuts"};
    static const char *const cut[] = {"index",     "name",           "wire_bytes",    "storage_s",
                                      "compute_s", "storage_memory", "compute_memory"};
    static const char *const memory[] = {"fixed", "per_image"};
    char key[64], other[64], path[64];

    for (size_t i = 0; i < sizeof top / sizeof *top; i++) {
        snprintf(key, sizeof key, "\"%s\":", top[i]);
        snprintf(other, sizeof other, "\"no_%s\":", top[i]);
        snprintf(path, sizeof path, "%s is missing", top[i]);
        refused(key, other, path);
    }
    for (size_t i = 0; i < sizeof cut / sizeof *cut; i++) {
        snprintf(key, sizeof key, "\"%s\":", cut[i]);
        snprintf(path, sizeof path, "cuts[0].%s is missing", cut[i]);
        refused_after("\"cuts\"", key, "\"no\":", path);
    }
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) {
        snprintf(key, sizeof key, "\"%s\":", memory[i]);
        snprintf(path, sizeof path, "cuts[0].storage_memory.%s is missing", memory[i]);
        refused(key, "\"no\":", path);
    }
    refused("\"f32\":4000", "\"bf16\":1", "cuts[0].wire_bytes.f32 is missing");
}

static void values__of_wrong_types__named(void)
{
    refused("\"images\":1000", "\"images\":\"1000\"", "images must be a whole number");
    refused("\"images\":1000", "\"images\":0", "images must be a whole number from 1");
    refused("\"images\":1000", "\"images\":1.5", "images must be a whole number");
    refused("\"images\":1000", "\"images\":-4", "images");
    refused("\"images\":1000", "\"images\":null", "images");
    refused("\"images\":1000", "\"images\":1e30", "images");
    refused("\"model\":\"net\"", "\"model\":7", "model must be a string");
    refused("\"model\":\"net\"", "\"model\":\"\"", "model must be a string, not empty");
    refused("\"train_s\":1e-4", "\"train_s\":-1e-4", "train_s must be a number from 0");
    refused("\"train_s\":1e-4", "\"train_s\":[1]", "train_s must be a number");
    refused("\"train_s\":1e-4", "\"train_s\":{}", "train_s is empty");
    refused("\"train_s\":1e-4", "\"train_s\":{\"0\":1}", "train_s.0 is no micro-batch");
    refused("\"train_s\":1e-4", "\"train_s\":{\"8\":1,\"eight\":1}", "train_s.eight is no micro-batch");
    refused("\"train_s\":1e-4", "\"train_s\":{\"8\":1,\"08\":1}", "train_s.08 is no micro-batch");
    refused("\"train_s\":1e-4", "\"train_s\":{\"8\":1,\"8\":1}", "train_s.8 is said twice");
    refused("\"train_s\":1e-4", "\"train_s\":{\"8\":true}", "train_s.8 must be a number");
    refused("\"storage_s\":0.01", "\"storage_s\":-1", "cuts[0].storage_s must be");
    refused("\"storage_s\":0.05", "\"storage_s\":{\"8\":-1}", "cuts[1].storage_s.8 must be");
    refused("\"storage_s\":0.05", "\"storage_s\":1e999", "cuts[1].storage_s must be");
    refused("\"f32\":4000", "\"f32\":0", "cuts[0].wire_bytes.f32 must be");
    refused("\"f16\":2000", "\"f64\":2000", "cuts[0].wire_bytes.f64 is no wire dtype");
    refused("{\"f32\":400}", "400", "cuts[1].wire_bytes must be an object");
    refused("\"bandwidth_Bps\":125e6", "\"bandwidth_Bps\":0", "bandwidth_Bps must be a number from 1");
    refused("\"latency_s\":1e-3", "\"latency_s\":-1", "latency_s");
    refused("\"index\":2", "\"index\":-1", "cuts[0].index");
    refused("\"index\":2", "\"index\":\"2\"", "cuts[0].index");
    refused("{\"index\":2", "3,{\"index\":2", "cuts[0] must be an object");
}

static void numbers__that_json_does_not_have__place_named(void)
{
    refused("\"storage_s\":0.05", "\"storage_s\":NaN", "cuts[1].storage_s: byte");
    refused("\"read_s\":1e-4", "\"read_s\":-Infinity", "read_s: byte");
    refused("\"train_s\":1e-4", "\"train_s\":{\"1\":0,\"8\":nan}", "train_s.8: byte");
    refused("\"images\":1000,", "\"images\":1000,,", "byte");
    refused("}]}", "}]", "byte");
    refused("}]}", "}]} x", "more text");
}

static void optional_keys__wrong__named(void)
{
    static const struct {
        const char *json, *says;
    } cases[] = {
        {"\"tiers\":4", "tiers must be an object"},
        {"\"tiers\":{\"storage\":{\"cores\":0}}", "tiers.storage.cores"},
        {"\"tiers\":{\"compute\":{\"contention\":1.5}}", "tiers.compute.contention"},
        {"\"tiers\":{\"compute\":{\"train_shares\":1}}", "tiers.compute.train_shares must be true or false"},
        {"\"tiers\":{\"storage\":{\"train_shares\":true}}", "tiers.storage.train_shares"},
        {"\"node_list\":[{\"name\":\"a\"}]", "node_list has 1 nodes where `nodes` says 2"},
        {"\"node_list\":[{\"name\":\"a\"},{}]", "node_list[1].name is missing"},
        {"\"node_list\":[{\"name\":\"a\"},{\"name\":\"b\",\"speed\":0}]", "node_list[1].speed"},
        {"\"node_list\":[{\"name\":\"a\"},{\"name\":\"b\",\"bandwidth_Bps\":0}]",
         "node_list[1].bandwidth_Bps"},
        {"\"client_bandwidth_Bps\":0", "client_bandwidth_Bps"},
        {"\"jitter\":1.5", "jitter"},
        {"\"request_images\":0", "request_images"},
        {"\"convert_s\":{\"f17\":1}", "convert_s.f17 is no wire dtype"},
        {"\"convert_s\":{\"f16\":-1}", "convert_s.f16"},
        {"\"serialise_s\":\"fast\"", "serialise_s"},
        {"\"images\":3", "images is said twice"},
        {"\"\\u001b[2J\":1,\"\\u001b[2J\":2", "?[2J is said twice"},
    };
    char to[256];

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(to, sizeof to, "{%s,\"model\"", cases[i].json);
        refused("{\"model\"", to, cases[i].says);
    }
}

static void keys__that_contradict_each_other__named(void)
{
    refused("\"index\":2", "\"index\":7", "cuts[1].index is 7, as that of a cut before it");
    refused("\"freeze\":7", "\"freeze\":6", "cuts[1].index is beyond the freeze layer");
    refused("\"freeze\":7", "\"freeze\":8", "freeze is 8, and no cut has this index");
    refused("\"storage_memory\":1e9", "\"storage_memory\":109", "storage_memory is too small");
    refused("\"compute_memory\":1e9", "\"compute_memory\":-1", "compute_memory must be");
}

static void memory__enough_for_one_cut__accepted(void)
{
    hapi_profile_free(parsed_edit("\"storage_memory\":1e9", "\"storage_memory\":110"));
}

static void cuts__none__refused(void)
{
    static const char empty[] = "{\"cuts\":[]}", missing[] = "{}", list[] = "[1]";
    struct hapi_profile *p;
    struct hapi_err err = {0};

    CHECK(hapi_profile_parse(&p, empty, strlen(empty), &err) == HAPI_EINVAL &&
          strstr(err.text, "cuts is empty"));
    CHECK(hapi_profile_parse(&p, missing, 2, &err) == HAPI_EINVAL && strstr(err.text, "cuts is missing"));
    CHECK(hapi_profile_parse(&p, list, 3, &err) == HAPI_EINVAL && strstr(err.text, "must be an object"));
    CHECK(hapi_profile_parse(&p, "", 0, &err) == HAPI_EFORMAT && err.text[0]);
}

/* Written and read again: the same text, and numbers bit for bit. */
static void write__of_all_keys__comes_back(void)
{
    struct hapi_profile *p = parsed_edit(
        "\"cuts\":[{",
        "\"tiers\":{\"storage\":{\"cores\":3,\"contention\":0.1},\"compute\":{\"devices\":2,\"train_shares\":"
        "true}},"
        "\"node_list\":[{\"name\":\"a\",\"speed\":0.7},{\"name\":\"b "
        "\\\"x\\\"\"}],\"client_bandwidth_Bps\":1e10,"
        "\"convert_s\":{\"int8\":{\"3\":0.1}},\"serialise_s\":0.3,\"jitter\":0.05,\"request_images\":16,"
        "\"source_compute_s\":{\"1\":0.3,\"8\":0.1},\"hash\":\"h\",\"host\":\"o\",\"dtype\":\"bf16\","
        "\"date\":\"d\","
        "\"cuts\":[{\"serialise_s\":0,\"convert_s\":{\"f16\":0},");
    struct hapi_profile *q;
    struct hapi_err err = {0};
    char *once = NULL, *twice = NULL;

    p->train_s.s = 1.0 / 3;
    CHECK(!hapi_profile_write(p, &once, &err));
    REQUIRE(once);
    q = parsed(once);
    CHECK(!hapi_profile_write(q, &twice, &err) && !strcmp(once, twice));
    CHECK(q->train_s.s == 1.0 / 3 && q->node_list[0].speed == 0.7 &&
          !strcmp(q->node_list[1].name, "b \"x\""));
    CHECK(q->storage.cores == 3 && q->storage.contention == 0.1 && q->compute.devices == 2 &&
          q->compute.train_shares);
    CHECK(hapi_profile_convert(q, &q->cuts[0], HAPI_WIRE_I8, 3) == 0.1 && q->cuts[0].serialise_s.s == 0);
    CHECK(q->cuts[0].convert_s[HAPI_WIRE_F16].s == 0 && q->cuts[1].convert_s[HAPI_WIRE_F16].s < 0);
    CHECK(!strcmp(q->date, "d") && q->jitter == 0.05 && q->request_images == 16 &&
          q->source_compute_s.n == 2);
    free(once);
    free(twice);
    hapi_profile_free(p);
    hapi_profile_free(q);
}

static void write__of_what_was_made__reads_back_or_names_the_key(void)
{
    static const struct hapi_curve_point points[] = {{1, 0.5}, {8, 0.25}};
    struct hapi_profile *p, *q;
    struct hapi_err err = {0};
    char *json = NULL;

    REQUIRE(!hapi_profile_new(&p, 1, 0, &err));
    p->model = hapi_profile_text(p, "made");
    p->images = 10;
    p->train_batch = p->epochs = p->nodes = 1;
    p->source_bytes = p->bandwidth_Bps = 1;
    p->cuts[0].name = hapi_profile_text(p, "flat");
    p->cuts[0].wire_bytes[HAPI_WIRE_F32] = 4;
    CHECK(!hapi_profile_curve(p, &p->cuts[0].storage_s, points, 2));
    CHECK(!hapi_profile_write(p, &json, &err));
    REQUIRE(json);
    q = parsed(json);
    CHECK(hapi_curve_at(&q->cuts[0].storage_s, 8) == 0.25 && !strcmp(q->model, "made"));
    hapi_profile_free(q);
    free(json);
    json = NULL;
    p->cuts[0].compute_s.s = NAN;
    CHECK(hapi_profile_write(p, &json, &err) == HAPI_EINVAL && strstr(err.text, "cuts[0].compute_s") &&
          !json);
    p->cuts[0].compute_s.s = 0;
    p->bandwidth_Bps = 0;
    CHECK(hapi_profile_write(p, &json, &err) == HAPI_EINVAL && strstr(err.text, "bandwidth_Bps") && !json);
    hapi_profile_free(p);
    CHECK(hapi_profile_new(&p, 0, 0, &err) == HAPI_EINVAL);
}

int main(void)
{
    CASE(required_keys__all_there__read);
    CASE(optional_keys__left_out__mean_absent);
    CASE(optional_keys__said__read);
    CASE(conversion__said_by_a_cut__is_that_cuts);
    CASE(tables__any_micro_batch__batch_time_interpolated);
    CASE(source_compute__not_said__from_the_first_cut);
    CASE(cuts__in_any_order__sorted);
    CASE(required_keys__each_missing__named);
    CASE(values__of_wrong_types__named);
    CASE(numbers__that_json_does_not_have__place_named);
    CASE(optional_keys__wrong__named);
    CASE(keys__that_contradict_each_other__named);
    CASE(memory__enough_for_one_cut__accepted);
    CASE(cuts__none__refused);
    CASE(write__of_all_keys__comes_back);
    CASE(write__of_what_was_made__reads_back_or_names_the_key);
    return check_done();
}
