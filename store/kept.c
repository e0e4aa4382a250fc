#include "kept_impl.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"

enum { SETS_MAX = 256, TABLE_MIN = 64 };
#define GONE UINT32_MAX   /* in a table: somebody was here, look on */
#define HALF_LIFE_S 600.0 /* of the worth of a set that nobody uses */

/* ------------------------------------------------------------------ rows */

static struct hapi_shelf *shelf_of(struct hapi_feature_set *s, uint32_t slot)
{
    return slot & HAPI_SLOT_DISK ? &s->disk : &s->memory;
}

struct hapi_row *hapi_row_at(struct hapi_feature_set *s, uint32_t slot)
{
    return &shelf_of(s, slot)->rows[slot & ~HAPI_SLOT_DISK];
}

static uint8_t *memory_of(const struct hapi_feature_set *s, uint32_t slot)
{
    uint32_t each = (uint32_t)(s->f->piece / s->pitch);

    if (slot & HAPI_SLOT_DISK)
        return NULL;
    return (uint8_t *)s->f->opt.memory + s->pieces[slot / each] * s->f->piece +
           (size_t)(slot % each) * s->pitch;
}

int hapi_shelf_reserve(struct hapi_shelf *h, uint32_t slots)
{
    uint32_t n = h->capacity ? h->capacity : TABLE_MIN;

    if (slots <= h->capacity)
        return 0;
    while (n < slots)
        n = n > HAPI_SLOTS_MAX / 2 ? HAPI_SLOTS_MAX : n * 2;
    struct hapi_row *grown = realloc(h->rows, n * sizeof *grown);
    if (!grown)
        return HAPI_ENOMEM;
    memset(grown + h->capacity, 0, (n - h->capacity) * sizeof *grown);
    h->rows = grown;
    h->capacity = n;
    return 0;
}

/* ------------------------------------------------------------------ the table */

/* Digests are as good as random; the samples of one object differ in their index. */
static uint32_t hash_of(const uint8_t *digest, uint32_t index)
{
    uint64_t h;

    memcpy(&h, digest, sizeof h);
    h = (h ^ index) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(h >> 32);
}

static bool is_of(const struct hapi_row *r, const uint8_t *digest, uint32_t index)
{
    return r->index == index && !memcmp(r->digest, digest, HAPI_ROW_DIGEST);
}

/* Where the sample's slot stands in the table; NULL: nowhere. */
static uint32_t *table_find(const struct hapi_feature_set *s, const uint8_t *digest, uint32_t index)
{
    uint32_t mask = s->table_size - 1;

    if (!s->table)
        return NULL;
    for (uint32_t i = hash_of(digest, index) & mask; s->table[i]; i = (i + 1) & mask)
        if (s->table[i] != GONE &&
            is_of(hapi_row_at((struct hapi_feature_set *)s, s->table[i] - 1), digest, index))
            return &s->table[i];
    return NULL;
}

bool hapi_table_has(const struct hapi_feature_set *s, const uint8_t *digest, uint32_t index)
{
    return table_find(s, digest, index) != NULL;
}

static void table_put(struct hapi_feature_set *s, uint32_t slot)
{
    const struct hapi_row *r = hapi_row_at(s, slot);
    uint32_t mask = s->table_size - 1, i = hash_of(r->digest, r->index) & mask;

    while (s->table[i])
        i = (i + 1) & mask;
    s->table[i] = slot + 1;
    s->table_used++;
}

int hapi_table_add(struct hapi_feature_set *s, uint32_t slot)
{
    if (2 * (s->table_used + 1) > s->table_size) {
        uint32_t *old = s->table, n = s->table_size, live = 0;
        for (uint32_t i = 0; i < n; i++)
            live += old[i] && old[i] != GONE;
        uint32_t size = TABLE_MIN;
        while (size < 4 * (live + 1)) /* at most half a billion rows: it fits */
            size *= 2;
        uint32_t *table = calloc(size, sizeof *table);
        if (!table)
            return HAPI_ENOMEM;
        s->table = table;
        s->table_size = size;
        s->table_used = 0;
        for (uint32_t i = 0; i < n; i++)
            if (old[i] && old[i] != GONE)
                table_put(s, old[i] - 1);
        free(old);
    }
    table_put(s, slot);
    return 0;
}

static void table_remove(struct hapi_feature_set *s, const struct hapi_row *r)
{
    uint32_t *at = table_find(s, r->digest, r->index);

    if (at)
        *at = GONE;
}

/* ------------------------------------------------------------------ sets */

struct hapi_feature_set *hapi_feature_set_new(struct hapi_features *f, const uint8_t key[32],
                                              uint32_t row_bytes)
{
    struct hapi_feature_set *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    s->f = f;
    memcpy(s->key, key, sizeof s->key);
    s->row_bytes = row_bytes;
    s->pitch = (row_bytes + 63) & ~63u;
    s->stride = (row_bytes + HAPI_FEATURE_ALIGN - 1) & ~(HAPI_FEATURE_ALIGN - 1u);
    s->rows_fd = s->log_fd = -1;
    s->used_ns = hapi_clock_ns();
    s->next = f->sets;
    f->sets = s;
    f->n_sets++;
    return s;
}

static void set_free(struct hapi_feature_set *s, bool remove)
{
    struct hapi_features *f = s->f;

    f->n_sets--;
    hapi_set_files_close(s, remove);
    for (uint32_t i = 0; i < s->n_pieces; i++)
        f->free_pieces[f->n_free_pieces++] = s->pieces[i];
    f->stats.memory_rows -= s->memory.kept;
    f->stats.disk_rows -= s->disk.kept;
    free(s->pieces);
    free(s->memory.rows);
    free(s->disk.rows);
    free(s->table);
    free(s);
}

void hapi_feature_set_drop(struct hapi_feature_set *s)
{
    struct hapi_feature_set **p = &s->f->sets;

    while (*p != s)
        p = &(*p)->next;
    *p = s->next;
    s->f->stats.dropped += s->memory.kept + s->disk.kept;
    set_free(s, true);
}

static bool is_idle(const struct hapi_feature_set *s)
{
    return !s->users && !s->holds && s->on_disk != HAPI_DISK_LOADING;
}

/* Seconds saved a byte; half as much after HALF_LIFE_S without use. */
static double worth(const struct hapi_feature_set *s, int64_t now)
{
    double idle_s = s->users ? 0 : 1e-9 * (double)(now - s->used_ns);

    return s->seconds / s->stride / (1 + idle_s / HALF_LIFE_S);
}

/* Drops the idle set that is worth least, if it is worth less than `than` (NULL: any is). */
static bool drop_one(struct hapi_features *f, const struct hapi_feature_set *than, bool memory)
{
    int64_t now = hapi_clock_ns();
    struct hapi_feature_set *least = NULL;

    for (struct hapi_feature_set *s = f->sets; s; s = s->next) {
        bool has = memory ? s->n_pieces != 0 : s->disk.n != 0;
        if (s != than && has && is_idle(s) && (!least || worth(s, now) < worth(least, now)))
            least = s;
    }
    if (!least || (than && worth(least, now) >= worth(than, now)))
        return false;
    hapi_feature_set_drop(least);
    return true;
}

bool hapi_disk_room(struct hapi_features *f, const struct hapi_feature_set *s, uint64_t bytes)
{
    while (f->disk_used + bytes > f->opt.disk_bytes)
        if (!drop_one(f, s, false))
            return false;
    return true;
}

/* The table of sets is full: the one that nobody has used for longest makes room. */
static bool set_place(struct hapi_features *f)
{
    struct hapi_feature_set *oldest = NULL;

    if (f->n_sets < SETS_MAX)
        return true;
    for (struct hapi_feature_set *s = f->sets; s; s = s->next)
        if (is_idle(s) && (!oldest || s->used_ns < oldest->used_ns))
            oldest = s;
    if (oldest)
        hapi_feature_set_drop(oldest);
    return oldest != NULL;
}

struct hapi_feature_set *hapi_feature_set_get(struct hapi_features *f, const uint8_t key[32],
                                              uint32_t row_bytes)
{
    struct hapi_feature_set *s = f->sets;

    while (s && memcmp(s->key, key, sizeof s->key))
        s = s->next;
    if (s && s->row_bytes != row_bytes) /* cannot be: the key says how large rows are */
        return NULL;
    if (!s && (!row_bytes || row_bytes > f->opt.row_max || !set_place(f)))
        return NULL;
    if (!s)
        s = hapi_feature_set_new(f, key, row_bytes);
    if (!s)
        return NULL;
    s->users++;
    if (s->on_disk == HAPI_DISK_FOUND)
        hapi_set_files_load(s);
    return s;
}

void hapi_feature_set_put(struct hapi_feature_set *s)
{
    if (!s)
        return;
    s->users--;
    s->used_ns = hapi_clock_ns();
}

size_t hapi_feature_stride(const struct hapi_feature_set *s)
{
    return s->stride;
}

/* ------------------------------------------------------------------ finding */

static uint32_t now_s(const struct hapi_features *f)
{
    return (uint32_t)((hapi_clock_ns() - f->began_ns) / HAPI_NS_PER_S);
}

bool hapi_feature_has(const struct hapi_feature_set *s, const uint8_t *digest, uint32_t index)
{
    const uint32_t *at = table_find(s, digest, index);

    return at && hapi_row_at((struct hapi_feature_set *)s, *at - 1)->state == HAPI_ROW_KEPT;
}

bool hapi_feature_find(struct hapi_feature_set *s, const uint8_t *digest, uint32_t index,
                       struct hapi_feature *out)
{
    const uint32_t *at = table_find(s, digest, index);
    struct hapi_row *r = at ? hapi_row_at(s, *at - 1) : NULL;

    if (!r || r->state != HAPI_ROW_KEPT)
        return false;
    r->holds++;
    s->holds++;
    *out = (struct hapi_feature){.slot = *at - 1,
                                 .memory = memory_of(s, *at - 1),
                                 .looked_ns = s->f->began_ns + r->looked_s * HAPI_NS_PER_S};
    return true;
}

void hapi_feature_looked(struct hapi_feature_set *s, const struct hapi_feature *r)
{
    hapi_row_at(s, r->slot)->looked_s = now_s(s->f);
}

void hapi_row_free(struct hapi_feature_set *s, uint32_t slot)
{
    struct hapi_shelf *h = shelf_of(s, slot);
    struct hapi_row *r = hapi_row_at(s, slot);

    r->state = HAPI_ROW_FREE;
    r->index = h->free;
    h->free = (slot & ~HAPI_SLOT_DISK) + 1;
}

void hapi_feature_release(struct hapi_feature_set *s, const struct hapi_feature *f)
{
    struct hapi_row *r = hapi_row_at(s, f->slot);

    s->holds--;
    if (!--r->holds && r->state == HAPI_ROW_DEAD)
        hapi_row_free(s, f->slot);
}

void hapi_feature_drop(struct hapi_feature_set *s, const struct hapi_feature *f)
{
    struct hapi_row *r = hapi_row_at(s, f->slot);

    if (r->state != HAPI_ROW_KEPT)
        return;
    table_remove(s, r);
    r->state = HAPI_ROW_DEAD; /* the caller holds it */
    shelf_of(s, f->slot)->kept--;
    s->f->stats.dropped++;
    if (f->slot & HAPI_SLOT_DISK)
        s->f->stats.disk_rows--;
    else
        s->f->stats.memory_rows--;
}

/* ------------------------------------------------------------------ keeping */

static bool piece_take(struct hapi_feature_set *s)
{
    struct hapi_features *f = s->f;

    while (!f->n_free_pieces)
        if (!drop_one(f, s, true))
            return false;
    uint32_t *grown = realloc(s->pieces, (s->n_pieces + 1) * sizeof *grown);
    if (!grown)
        return false;
    s->pieces = grown;
    s->pieces[s->n_pieces++] = f->free_pieces[--f->n_free_pieces];
    return true;
}

/* A slot that nobody has, or false. */
static bool slot_take(struct hapi_feature_set *s, bool disk, uint32_t *slot)
{
    struct hapi_features *f = s->f;
    struct hapi_shelf *h = disk ? &s->disk : &s->memory;

    if (h->free) {
        *slot = h->free - 1;
        h->free = h->rows[*slot].index;
    } else {
        if (h->n >= HAPI_SLOTS_MAX || hapi_shelf_reserve(h, h->n + 1))
            return false;
        if (disk ? !hapi_disk_room(f, s, s->stride)
                 : h->n == s->n_pieces * (uint32_t)(f->piece / s->pitch) && !piece_take(s))
            return false;
        f->disk_used += disk ? s->stride : 0;
        *slot = h->n++;
    }
    *slot |= disk ? HAPI_SLOT_DISK : 0;
    return true;
}

static bool place_take(struct hapi_feature_set *s, bool disk, uint32_t *slot)
{
    if (s->f->n_pieces && slot_take(s, false, slot))
        return true;
    if (!disk || s->f->dir < 0)
        return false;
    if (s->on_disk == HAPI_DISK_NONE)
        hapi_set_files_make(s);
    return s->on_disk == HAPI_DISK_OPEN && slot_take(s, true, slot);
}

bool hapi_feature_reserve(struct hapi_feature_set *s, const uint8_t *digest, uint32_t index, double seconds,
                          bool disk, struct hapi_feature *out)
{
    uint32_t slot;

    s->seconds = seconds > 0 ? seconds : s->seconds;
    if (s->on_disk == HAPI_DISK_LOADING || hapi_table_has(s, digest, index) || !place_take(s, disk, &slot))
        return false;
    struct hapi_row *r = hapi_row_at(s, slot);
    *r = (struct hapi_row){.index = index, .looked_s = now_s(s->f), .state = HAPI_ROW_RESERVED};
    memcpy(r->digest, digest, HAPI_ROW_DIGEST);
    if (hapi_table_add(s, slot)) {
        hapi_row_free(s, slot);
        return false;
    }
    s->holds++;
    *out = (struct hapi_feature){.slot = slot, .memory = memory_of(s, slot)};
    return true;
}

void hapi_row_kept(struct hapi_feature_set *s, uint32_t slot)
{
    hapi_row_at(s, slot)->state = HAPI_ROW_KEPT;
    shelf_of(s, slot)->kept++;
    if (slot & HAPI_SLOT_DISK)
        s->f->stats.disk_rows++;
    else
        s->f->stats.memory_rows++;
}

void hapi_feature_keep(struct hapi_feature_set *s, const struct hapi_feature *f)
{
    hapi_row_kept(s, f->slot);
    s->f->stats.kept++;
    s->holds--;
}

void hapi_feature_abandon(struct hapi_feature_set *s, const struct hapi_feature *f)
{
    table_remove(s, hapi_row_at(s, f->slot));
    hapi_row_free(s, f->slot);
    s->holds--;
}

/* ------------------------------------------------------------------ all of them */

static int memory_open(struct hapi_features *f, struct hapi_err *err)
{
    size_t piece = (f->opt.row_max + HAPI_FEATURE_ALIGN - 1) & ~(size_t)(HAPI_FEATURE_ALIGN - 1);

    f->piece = piece > HAPI_FEATURE_PIECE ? piece : HAPI_FEATURE_PIECE;
    f->n_pieces = f->opt.memory ? (uint32_t)(f->opt.memory_bytes / f->piece) : 0;
    f->free_pieces = calloc((size_t)f->n_pieces + 1, sizeof *f->free_pieces);
    if (!f->free_pieces)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to keep features");
    for (uint32_t i = f->n_pieces; i--;)
        f->free_pieces[f->n_free_pieces++] = i;
    return 0;
}

int hapi_features_open(struct hapi_features **out, struct hapi_loop *loop,
                       const struct hapi_features_options *opt, struct hapi_err *err)
{
    struct hapi_features *f = calloc(1, sizeof *f);

    if (!f)
        return hapi_err_set(err, HAPI_ENOMEM, 0, "no memory to keep features");
    f->opt = *opt;
    f->loop = loop;
    f->dir = -1;
    f->began_ns = hapi_clock_ns();
    int rc = memory_open(f, err);
    if (!rc && opt->dir)
        rc = hapi_features_disk_open(f, err);
    if (rc) {
        hapi_features_close(f);
        return rc;
    }
    *out = f;
    return 0;
}

void hapi_features_close(struct hapi_features *f)
{
    if (!f)
        return;
    hapi_pool_close(f->reader); /* before the sets that it reads */
    for (struct hapi_feature_set *s = f->sets, *next; s; s = next) {
        next = s->next;
        set_free(s, false);
    }
    hapi_features_disk_close(f);
    free(f->free_pieces);
    free(f);
}

void hapi_features_reap(struct hapi_features *f)
{
    if (f->reader)
        hapi_pool_reap(f->reader);
}

struct hapi_features_stats hapi_features_stats_get(const struct hapi_features *f)
{
    struct hapi_features_stats t = f->stats;

    t.memory_bytes = (uint64_t)(f->n_pieces - f->n_free_pieces) * f->piece;
    t.disk_bytes = f->disk_used;
    return t;
}
