#include "seams.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after stdio.h */
#include <dnnl.h>
#include <jpeglib.h>
#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_rma.h>

#include "check.h"
#include "clock.h"
#include "control_int.h"
#include "convert.h"
#include "graph.h"
#include "int8.h"
#include "ref.h"
#include "store.h"
#include "wire.h"

enum { EVENTS_MAX = 1 << 18, REGIONS_MAX = 64 };

static struct {
    pthread_mutex_t lock;
    size_t n;
    struct seam_event events[EVENTS_MAX];
    size_t n_regions;
    struct region {
        uint64_t key;
        uintptr_t base;
    } regions[REGIONS_MAX];
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER};

static atomic_bool corrupt_next, corrupted;
static atomic_uint hidden_caps, claimed_caps;

static size_t add(enum seam_kind kind, const void *dst, size_t n, const void *src, size_t src_n, uint32_t crc)
{
    pthread_mutex_lock(&seen.lock);
    size_t i = seen.n;
    if (seen.n < EVENTS_MAX)
        seen.events[seen.n] = (struct seam_event){kind, (uintptr_t)dst, (uintptr_t)src, n, src_n, crc};
    seen.n++;
    pthread_mutex_unlock(&seen.lock);
    return i;
}

/* It was announced, for the other side may see it at once, and did not happen: libfabric was busy. */
static void take_back(size_t i)
{
    pthread_mutex_lock(&seen.lock);
    if (i < EVENTS_MAX)
        seen.events[i].n = seen.events[i].src_n = 0;
    pthread_mutex_unlock(&seen.lock);
}

void seams_clear(void)
{
    pthread_mutex_lock(&seen.lock);
    seen.n = 0;
    pthread_mutex_unlock(&seen.lock);
}

size_t seams_count(void)
{
    pthread_mutex_lock(&seen.lock);
    size_t n = seen.n;
    pthread_mutex_unlock(&seen.lock);
    REQUIRE(n <= EVENTS_MAX);
    return n;
}

struct seam_event seams_at(size_t i)
{
    pthread_mutex_lock(&seen.lock);
    struct seam_event e = seen.events[i];
    pthread_mutex_unlock(&seen.lock);
    return e;
}

void seams_corrupt_next(void)
{
    corrupted = false;
    corrupt_next = true;
}

bool seams_corrupted(void)
{
    return corrupted;
}

void seams_hide_caps(uint32_t caps)
{
    hidden_caps = caps;
}

void seams_claim_caps(uint32_t caps)
{
    claimed_caps = caps;
}

/* ------------------------------------------------------------------ where something came from */

static const char *const kinds[] = {
    [SEAM_READ] = "a read from the store", [SEAM_KERNEL] = "a kernel",  [SEAM_CONVERT] = "a conversion",
    [SEAM_WRITE] = "a remote write",       [SEAM_DECODE] = "a decoder", [SEAM_COPY] = "a copy",
};

static bool overlap(uintptr_t a, size_t n, uintptr_t b, size_t m)
{
    return n && m && a < b + m && b < a + n;
}

/* The last event before `before` that wrote into [at, at+n); -1: none, or one after which it was sent. */
static long writer_of(uintptr_t at, size_t n, size_t before)
{
    for (size_t i = before; i-- > 0;) {
        const struct seam_event *e = &seen.events[i];
        if (overlap(at, n, e->dst, e->n))
            return (long)i;
        if (e->kind == SEAM_WRITE && overlap(at, n, e->src, e->src_n))
            return -1;
    }
    return -1;
}

bool seams_chain(uintptr_t at, size_t n, size_t before, const enum seam_kind *want, size_t n_want)
{
    bool ok = true;

    pthread_mutex_lock(&seen.lock);
    for (size_t k = 0; k < n_want && ok; k++) {
        long i = writer_of(at, n, before);
        const struct seam_event *e = i < 0 ? NULL : &seen.events[i];
        ok = e && e->kind == want[k] && at >= e->dst && at + n <= e->dst + e->n;
        if (!ok) {
            fprintf(stderr, "link %zu, %zu bytes at %#zx: not %s but %s", k, n, (size_t)at, kinds[want[k]],
                    e ? kinds[e->kind] : "nothing that was seen");
            if (e)
                fprintf(stderr, " of %zu bytes to %#zx", e->n, (size_t)e->dst);
            fputc('\n', stderr);
            break;
        }
        if (e->src_n) { /* a conversion's sides differ in size */
            at = e->src + (at - e->dst) * e->src_n / e->n;
            n = n * e->src_n / e->n;
        }
        before = (size_t)i;
    }
    pthread_mutex_unlock(&seen.lock);
    return ok;
}

/* ------------------------------------------------------------------ --wrap */

#define WRAP(type, name, ...)                                                                                \
    type __real_##name(__VA_ARGS__);                                                                         \
    type __wrap_##name(__VA_ARGS__);                                                                         \
    type __wrap_##name(__VA_ARGS__)

WRAP(void *, memcpy, void *dst, const void *src, size_t n)
{
    if (n >= SEAM_COPY_MIN)
        add(SEAM_COPY, dst, n, src, n, 0);
    return __real_memcpy(dst, src, n);
}

WRAP(void *, memmove, void *dst, const void *src, size_t n)
{
    if (n >= SEAM_COPY_MIN)
        add(SEAM_COPY, dst, n, src, n, 0);
    return __real_memmove(dst, src, n);
}

WRAP(dnnl_status_t, dnnl_primitive_execute, const_dnnl_primitive_t p, dnnl_stream_t stream, int n,
     const dnnl_exec_arg_t *args)
{
    dnnl_status_t s = __real_dnnl_primitive_execute(p, stream, n, args);

    for (int i = 0; i < n; i++) {
        const dnnl_memory_desc_t *d;
        void *to;
        if (args[i].arg != DNNL_ARG_DST)
            continue;
        REQUIRE(!dnnl_memory_get_memory_desc(args[i].memory, &d));
        REQUIRE(!dnnl_memory_get_data_handle(args[i].memory, &to));
        add(SEAM_KERNEL, to, dnnl_memory_desc_get_size(d), NULL, 0, 0);
    }
    return s;
}

static size_t value_bytes(const struct hapi_shape *s, size_t size)
{
    int64_t n = 0;

    REQUIRE(!hapi_shape_elements(s, &n));
    return (size_t)n * size;
}

WRAP(int, hapi_ref_eval, const struct hapi_graph *g, const struct hapi_node *node, const void *const *in,
     void *const *out, struct hapi_err *err)
{
    int rc = __real_hapi_ref_eval(g, node, in, out, err);

    for (int i = 0; i < node->n_out; i++)
        if (node->out[i] >= 0 && out[i]) {
            const struct hapi_value *v = &g->values[node->out[i]];
            add(SEAM_KERNEL, out[i], value_bytes(&v->shape, hapi_dtype_size(v->dtype)), NULL, 0, 0);
        }
    return rc;
}

/* Whether that is the order in which the destination has them. */
static bool dense(const struct hapi_shape *s, const int64_t *stride)
{
    int64_t n = 1;

    for (int i = s->rank - 1; i >= 0; n *= s->dim[i--])
        if (s->dim[i] > 1 && stride[i] != n)
            return false;
    return true;
}

/* Another order is a reorder; the same order is a copy, whatever makes it. */
WRAP(void, hapi_ref_copy_strided, void *dst, const struct hapi_shape *s, const void *src,
     const int64_t *stride, size_t size)
{
    bool copy = dense(s, stride);

    __real_hapi_ref_copy_strided(dst, s, src, stride, size);
    add(copy ? SEAM_COPY : SEAM_KERNEL, dst, value_bytes(s, size), copy ? src : NULL,
        copy ? value_bytes(s, size) : 0, 0);
}

WRAP(int, hapi_convert, void *dst, enum hapi_dtype to, const void *src, enum hapi_dtype from, size_t n)
{
    int rc = __real_hapi_convert(dst, to, src, from, n);

    add(SEAM_CONVERT, dst, n * hapi_dtype_size(to), src, n * hapi_dtype_size(from), 0);
    return rc;
}

WRAP(int, hapi_convert_crc32c, void *dst, enum hapi_dtype to, const void *src, enum hapi_dtype from, size_t n,
     enum hapi_crc_side side, uint32_t *crc)
{
    int rc = __real_hapi_convert_crc32c(dst, to, src, from, n, side, crc);

    add(SEAM_CONVERT, dst, n * hapi_dtype_size(to), src, n * hapi_dtype_size(from), 0);
    return rc;
}

WRAP(void, hapi_i8_pack, void *rows, const float *x, const struct hapi_i8 *f, size_t n, uint32_t *crc)
{
    __real_hapi_i8_pack(rows, x, f, n, crc);
    add(SEAM_CONVERT, rows, n * hapi_i8_row(f), x, n * f->elements * 4, 0);
}

WRAP(int, hapi_i8_unpack, float *x, const void *rows, const struct hapi_i8 *f, size_t n, uint32_t *crc)
{
    int rc = __real_hapi_i8_unpack(x, rows, f, n, crc);

    add(SEAM_CONVERT, x, n * f->elements * 4, rows, n * hapi_i8_row(f), 0);
    return rc;
}

WRAP(int, hapi_store_read, struct hapi_store *s, struct hapi_read *r)
{
    add(SEAM_READ, r->buf, r->capacity, NULL, 0, 0);
    return __real_hapi_store_read(s, r);
}

WRAP(int, jpeg_read_header, j_decompress_ptr c, boolean require_image)
{
    add(SEAM_DECODE, NULL, 0, c->src->next_input_byte, c->src->bytes_in_buffer, 0);
    return __real_jpeg_read_header(c, require_image);
}

WRAP(int, hapi_hello_decode, struct hapi_hello *out, const void *body, size_t n, struct hapi_err *err)
{
    int rc = __real_hapi_hello_decode(out, body, n, err);

    if (!rc && out->role.n == 4 && !memcmp(out->role.s, "node", 4))
        out->caps = (out->caps & ~hidden_caps) | claimed_caps;
    return rc;
}

static struct {
    atomic_int ms;
    struct hapi_timer timer; /* and below: the node's loop */
    struct hapi_control *control;
    uint64_t id;
    int code;
    char text[HAPI_ERR_TEXT];
} word;

void seams_late_word(int ms)
{
    word.ms = ms;
}

int __real_hapi_control_error(struct hapi_control *c, uint64_t id, int code, const char *text);

static void word_goes(struct hapi_timer *t)
{
    (void)t;
    __real_hapi_control_error(word.control, word.id, word.code, word.text);
}

int __wrap_hapi_control_error(struct hapi_control *c, uint64_t id, int code, const char *text);
int __wrap_hapi_control_error(struct hapi_control *c, uint64_t id, int code, const char *text)
{
    int ms = atomic_exchange(&word.ms, 0);

    if (!ms)
        return __real_hapi_control_error(c, id, code, text);
    word.timer.fire = word_goes;
    word.control = c;
    word.id = id;
    word.code = code;
    snprintf(word.text, sizeof word.text, "%s", text);
    hapi_loop_timer_set(c->loop, &word.timer, hapi_clock_ns() + ms * HAPI_NS_PER_MS);
    return 0;
}

/* ------------------------------------------------------------------ libfabric */

/* fi_write() and the like are calls through tables that hang on the objects: each object that is opened gets
 * a copy of its table with our function in it. */

static struct fi_ops_fabric *fabric_real;
static struct fi_ops_domain *domain_real;
static struct fi_ops_mr *mr_real;
static struct fi_ops_rma *rma_real;

static uintptr_t address_of(uint64_t key, uint64_t offset)
{
    uintptr_t at = 0;

    pthread_mutex_lock(&seen.lock);
    for (size_t i = 0; i < seen.n_regions; i++)
        if (seen.regions[i].key == key)
            at = seen.regions[i].base + offset;
    pthread_mutex_unlock(&seen.lock);
    return at;
}

static size_t write_seen(const void *buf, size_t n, uint64_t offset, uint64_t key)
{
    uint32_t crc = hapi_crc32c(0, buf, n);

    if (atomic_exchange(&corrupt_next, false)) {
        ((uint8_t *)(uintptr_t)buf)[n / 2] ^= 1;
        corrupted = true;
    }
    return add(SEAM_WRITE, (void *)address_of(key, offset), n, buf, n, crc);
}

static ssize_t seam_write(struct fid_ep *ep, const void *buf, size_t n, void *desc, fi_addr_t peer,
                          uint64_t offset, uint64_t key, void *context)
{
    size_t event = write_seen(buf, n, offset, key);
    ssize_t rc = rma_real->write(ep, buf, n, desc, peer, offset, key, context);

    if (rc)
        take_back(event);
    return rc;
}

/* With completion data it is a part's record. */
static ssize_t seam_writemsg(struct fid_ep *ep, const struct fi_msg_rma *m, uint64_t flags)
{
    if (flags & FI_REMOTE_CQ_DATA)
        return rma_real->writemsg(ep, m, flags);
    REQUIRE(m->iov_count == 1 && m->rma_iov_count == 1);
    size_t event = write_seen(m->msg_iov->iov_base, m->msg_iov->iov_len, m->rma_iov->addr, m->rma_iov->key);
    ssize_t rc = rma_real->writemsg(ep, m, flags);
    if (rc)
        take_back(event);
    return rc;
}

static int seam_reg(struct fid *fid, const void *buf, size_t n, uint64_t access, uint64_t offset,
                    uint64_t key, uint64_t flags, struct fid_mr **mr, void *context)
{
    int rc = mr_real->reg(fid, buf, n, access, offset, key, flags, mr, context);

    pthread_mutex_lock(&seen.lock);
    REQUIRE(seen.n_regions < REGIONS_MAX);
    if (!rc)
        seen.regions[seen.n_regions++] = (struct region){(*mr)->key, (uintptr_t)buf};
    pthread_mutex_unlock(&seen.lock);
    return rc;
}

static int seam_endpoint(struct fid_domain *d, struct fi_info *info, struct fid_ep **ep, void *context)
{
    static struct fi_ops_rma table;
    int rc = domain_real->endpoint(d, info, ep, context);

    if (rc)
        return rc;
    pthread_mutex_lock(&seen.lock);
    if (!rma_real) {
        rma_real = (*ep)->rma;
        table = *rma_real;
        table.write = seam_write;
        table.writemsg = seam_writemsg;
    }
    REQUIRE((*ep)->rma == rma_real); /* one provider */
    (*ep)->rma = &table;
    pthread_mutex_unlock(&seen.lock);
    return 0;
}

static int seam_domain(struct fid_fabric *f, struct fi_info *info, struct fid_domain **d, void *context)
{
    static struct fi_ops_domain table;
    static struct fi_ops_mr mr;
    int rc = fabric_real->domain(f, info, d, context);

    if (rc)
        return rc;
    pthread_mutex_lock(&seen.lock);
    if (!domain_real) {
        domain_real = (*d)->ops;
        table = *domain_real;
        table.endpoint = seam_endpoint;
        mr_real = (*d)->mr;
        mr = *mr_real;
        mr.reg = seam_reg;
    }
    REQUIRE((*d)->ops == domain_real && (*d)->mr == mr_real);
    (*d)->ops = &table;
    (*d)->mr = &mr;
    pthread_mutex_unlock(&seen.lock);
    return 0;
}

WRAP(int, fi_fabric, struct fi_fabric_attr *attr, struct fid_fabric **f, void *context)
{
    static struct fi_ops_fabric table;
    int rc = __real_fi_fabric(attr, f, context);

    if (rc)
        return rc;
    pthread_mutex_lock(&seen.lock);
    if (!fabric_real) {
        fabric_real = (*f)->ops;
        table = *fabric_real;
        table.domain = seam_domain;
    }
    if ((*f)->ops == fabric_real) /* an open fabric may be given out again */
        (*f)->ops = &table;
    REQUIRE((*f)->ops == &table);
    pthread_mutex_unlock(&seen.lock);
    return 0;
}
