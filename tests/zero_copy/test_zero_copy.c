/*
 * No copy between the last kernel's output and the wire, and none on the client before the suffix: by the
 * addresses themselves (seams.h says how they are seen). Node and client run here, over libfabric's tcp
 * provider on loopback; `verbs` is given the same addresses by the same two calls (hapi_conn_write(),
 * hapi_conn_expose()).
 *
 * What counts as what:
 * - The last kernel is whatever writes the dense output in the wire's layout: at a convolution, whose output
 *   oneDNN keeps in blocks of channels, that is the reorder to NHWC which ends the plan (no plan could send
 *   blocks); behind a pool it is the pool itself or the reorder behind it.
 * - With a wire narrower than f32, converting to it is the one touch on the node and converting back the one
 * on the client (docs/protocol.md): from the kernel's buffer straight to what is sent, and from what the
 * network wrote straight to the caller's batch.
 * - With policy none the first to read on the client is the JPEG decoder; what it makes is the suffix's.
 * - Bad samples are left out of a batch by moving the rows behind them; there are none here.
 * - What libfabric does between its call and the socket is not ours.
 */
#include <string.h>

#include "check.h"
#include "convert.h"
#include "pair.h"
#include "seams.h"

static struct pair *pair;

struct job {
    const char *freeze, *policy, *wire;
    int checksum;
};

#define CHAIN(at, n, ...)                                                                                    \
    seams_chain(at, n, seams_count(), (const enum seam_kind[]){__VA_ARGS__},                                 \
                sizeof((const enum seam_kind[]){__VA_ARGS__}) / sizeof(enum seam_kind))

/* Each row of a batch, from the caller's view backwards. */
static void rows_check(const struct job *j, const struct hapi_batch_view *b)
{
    for (uint32_t i = 0; i < b->n; i++) {
        uintptr_t row = (uintptr_t)b->features + i * b->stride;
        if (!strcmp(j->policy, "none")) /* the suffix: in place, or by its buffer where a job is not full */
            continue;
        if (!strcmp(j->wire, "f32"))
            CHECK(CHAIN(row, b->width * 4, SEAM_WRITE, SEAM_KERNEL));
        else
            CHECK(CHAIN(row, b->width * 4, SEAM_CONVERT, SEAM_WRITE, SEAM_CONVERT, SEAM_KERNEL));
    }
}

/* The bytes are still those that were handed to the work request: nobody has touched them. */
static size_t writes_check(const struct hapi_batch_view *b)
{
    uintptr_t from = (uintptr_t)b->features, to = from + b->n * b->stride;
    size_t found = 0, n = seams_count();

    for (size_t i = 0; i < n; i++) {
        struct seam_event e = seams_at(i);
        if (e.kind != SEAM_WRITE || e.dst < from || e.dst >= to)
            continue;
        found += e.n;
        CHECK(e.dst + e.n <= to && (e.dst - from) % b->stride == 0);
        CHECK(hapi_crc32c(0, (const void *)e.dst, e.n) == e.crc32c);
    }
    return found;
}

/* What each decoder read: on the client (policy none) what the network wrote from what the store read, on the
 * node what the store read. The stores' events are older than the decoders', so each is traced from its own.
 */
static void decoders_check(const struct job *j)
{
    static const enum seam_kind client[] = {SEAM_WRITE, SEAM_READ}, node[] = {SEAM_READ};
    size_t decoded = 0, n = seams_count();

    for (size_t i = 0; i < n; i++) {
        struct seam_event e = seams_at(i);
        if (e.kind != SEAM_DECODE)
            continue;
        decoded++;
        CHECK(!strcmp(j->policy, "none") ? seams_chain(e.src, e.src_n, i, client, 2)
                                         : seams_chain(e.src, e.src_n, i, node, 1));
    }
    CHECK(decoded == PAIR_SAMPLES);
}

/* An epoch, every row of it traced before its batch is given back. */
static void run(const struct job *j)
{
    struct hapi_loader_options o = pair_options(pair);
    struct hapi_batch_view b;
    struct hapi_error e = {0};
    struct hapi_loader *l;
    uint32_t samples = 0;
    int rc;

    o.freeze = j->freeze;
    o.policy = j->policy;
    o.wire = j->wire;
    o.checksum = j->checksum;
    seams_clear();
    rc = hapi_loader_open(&l, &o, &e);
    CHECKF(!rc, "%s", e.text);
    REQUIRE(!rc && !hapi_loader_epoch(l, 0, &e));
    while ((rc = hapi_loader_next(l, &b, &e)) == 1) {
        bool direct = !strcmp(j->policy, "freeze") && !strcmp(j->wire, "f32");
        rows_check(j, &b);
        CHECK(writes_check(&b) == (direct ? b.n * b.stride : 0));
        samples += b.n;
        hapi_loader_release(l, &b);
    }
    CHECKF(!rc, "%s", e.text);
    CHECK(samples == PAIR_SAMPLES && !hapi_loader_stats_get(l).reissued);
    decoders_check(j);
    hapi_loader_close(l);
}

static void pool_f32__the_kernel_writes_what_is_sent__and_the_network_the_batch(void)
{
    run(&(struct job){PAIR_POOL, "freeze", "f32", 0});
    run(&(struct job){PAIR_POOL, "freeze", "f32", 1});
}

static void convolution_f32__the_reorder_writes_what_is_sent__and_the_network_the_batch(void)
{
    run(&(struct job){PAIR_CONV, "freeze", "f32", 0});
    run(&(struct job){PAIR_CONV, "freeze", "f32", 1});
}

static void narrow_wire__one_conversion_on_each_side__straight_to_the_slab_and_to_the_batch(void)
{
    run(&(struct job){PAIR_POOL, "freeze", "f16", 0});
    run(&(struct job){PAIR_POOL, "freeze", "bf16", 1});
    run(&(struct job){PAIR_CONV, "freeze", "f16", 1});
    run(&(struct job){PAIR_CONV, "freeze", "bf16", 0});
    run(&(struct job){PAIR_POOL, "freeze", "int8", 0});
    run(&(struct job){PAIR_POOL, "freeze", "int8", 1});
    run(&(struct job){PAIR_CONV, "freeze", "int8", 0});
    run(&(struct job){PAIR_CONV, "freeze", "int8", 1});
}

static void raw_objects__sent_from_where_they_were_read__decoded_where_they_arrived(void)
{
    run(&(struct job){PAIR_POOL, "none", "f32", 0});
    run(&(struct job){PAIR_POOL, "none", "f32", 1});
}

/* The seams themselves: what they must not miss. */
static void a_copy_and_a_loop__are_no_kernel(void)
{
    static float from[256], to[256];
    static const enum seam_kind kernel[] = {SEAM_KERNEL};

    seams_clear();
    CHECK(!hapi_convert(to, HAPI_F32, from, HAPI_F32, 256)); /* a memcpy of base/ and a conversion */
    CHECK(seams_count() == 2 && seams_at(0).kind == SEAM_COPY && seams_at(1).kind == SEAM_CONVERT);
    fprintf(stderr, "(the next two lines are meant)\n");
    CHECK(!seams_chain((uintptr_t)to, sizeof to, 1, kernel, 1));
    CHECK(!seams_chain((uintptr_t)from, sizeof from, 2, kernel, 1));
}

int main(int argc, char **argv)
{
    pair = pair_open(argc > 1 ? argv[1] : "onednn");
    CASE(a_copy_and_a_loop__are_no_kernel);
    CASE(pool_f32__the_kernel_writes_what_is_sent__and_the_network_the_batch);
    CASE(convolution_f32__the_reorder_writes_what_is_sent__and_the_network_the_batch);
    CASE(narrow_wire__one_conversion_on_each_side__straight_to_the_slab_and_to_the_batch);
    CASE(raw_objects__sent_from_where_they_were_read__decoded_where_they_arrived);
    pair_close(pair);
    return check_done();
}
