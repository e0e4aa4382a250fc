#include "scenario.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "json.h"

#define ARENA_MAX ((size_t)1 << 30)

struct reader {
    struct hapi_scenario *s;
    struct hapi_sim_node *nodes;
    struct hapi_sim_client *clients;
    const cJSON *names; /* of the profiles: its members, in their order */
    hapi_scenario_load *load;
    void *arg;
};

/* ------------------------------------------------------------------ keys */

/* A typing error in an optional key is not to pass for a default. */
static bool object_of(const struct hapi_json *at, const char *const *keys)
{
    if (!hapi_json_object(at))
        return false;
    for (const cJSON *v = at->value->child; v; v = v->next) {
        const char *const *k = keys;
        while (*k && strcmp(*k, v->string))
            k++;
        if (!*k) {
            struct hapi_json unknown = hapi_json_member(at, v->string);
            hapi_json_bad(&unknown, "is not known");
            return false;
        }
    }
    return true;
}

static uint32_t count_or(const struct hapi_json *in, const char *key, uint32_t min, uint32_t max,
                         uint32_t otherwise)
{
    struct hapi_json v = hapi_json_member(in, key);

    return v.value ? (uint32_t)hapi_json_count(&v, min, max) : otherwise;
}

static double number_or(const struct hapi_json *in, const char *key, double min, double max, double otherwise)
{
    struct hapi_json v = hapi_json_member(in, key);

    return v.value ? hapi_json_number(&v, min, max) : otherwise;
}

/* "name", or "name.3" where there are several; "node.3" where it has none. */
static const char *name_of(struct reader *r, const struct hapi_json *in, uint32_t i, uint32_t of,
                           const char *what, uint32_t number)
{
    struct hapi_json v = hapi_json_member(in, "name");
    const char *name = v.value ? hapi_json_string(&v) : NULL;
    char text[128];

    if (name && of == 1)
        snprintf(text, sizeof text, "%.100s", name);
    else
        snprintf(text, sizeof text, "%.100s.%u", name ? name : what, name ? i : number);
    char *copy = hapi_arena_strndup(r->s->arena, text, strlen(text));
    if (!copy)
        hapi_json_no_memory(in);
    return copy;
}

/* ------------------------------------------------------------------ profiles */

/* The text of a profile: that of a file, or of what stands there; NULL: something is wrong. */
static char *profile_text(struct reader *r, const struct hapi_json *at, size_t *size)
{
    const char *file = cJSON_IsString(at->value) ? hapi_json_string(at) : NULL;
    struct hapi_err why = {0};
    char *text = NULL, path[HAPI_JSON_PATH];
    int rc;

    if (!file) {
        if (!cJSON_IsObject(at->value))
            hapi_json_bad(at, "must be a profile, or the name of its file");
        else if (!(text = cJSON_PrintUnformatted(at->value)))
            hapi_json_no_memory(at);
        *size = text ? strlen(text) : 0;
        return text;
    }
    if (!r->load) {
        hapi_json_bad(at, "must be a profile: files are not read here");
        return NULL;
    }
    rc = r->load(r->arg, file, &text, size, &why);
    if (!rc)
        return text;
    hapi_json_path(at, path);
    at->state->rc = hapi_err_set(at->state->err, rc, 0, "%s: %.300s", path, why.text);
    return NULL;
}

static void profile_read(struct reader *r, const struct hapi_json *at)
{
    struct hapi_err why = {0};
    char path[HAPI_JSON_PATH];
    size_t size = 0;
    char *text = profile_text(r, at, &size);

    if (!text)
        return;
    int rc = hapi_profile_parse(&r->s->profiles[r->s->n_profiles], text, size, &why);
    free(text);
    if (!rc) {
        r->s->n_profiles++;
        return;
    }
    hapi_json_path(at, path);
    at->state->rc = hapi_err_set(at->state->err, rc, 0, "%s: %.300s", path, why.text);
}

static void profiles_read(struct reader *r, const struct hapi_json *top)
{
    struct hapi_json all = hapi_json_member(top, "profiles");

    if (!hapi_json_object(&all))
        return;
    int n = cJSON_GetArraySize(all.value);
    if (!n || n > HAPI_SCENARIO_PROFILES_MAX)
        hapi_json_bad(&all, "must have 1 to %d profiles", HAPI_SCENARIO_PROFILES_MAX);
    r->names = all.value;
    r->s->profiles = hapi_arena_array(r->s->arena, (size_t)n + 1, sizeof(struct hapi_profile *));
    if (!r->s->profiles)
        hapi_json_no_memory(&all);
    for (const cJSON *v = all.value->child; v && !all.state->rc; v = v->next) {
        struct hapi_json one = hapi_json_member(&all, v->string);
        profile_read(r, &one);
    }
}

static const struct hapi_profile *profile_find(struct reader *r, const struct hapi_json *at)
{
    const char *name = hapi_json_string(at);
    uint32_t i = 0;

    if (!name)
        return NULL;
    for (const cJSON *v = r->names->child; v; v = v->next, i++)
        if (!strcmp(v->string, name))
            return r->s->profiles[i];
    hapi_json_bad(at, "is no name in `profiles`");
    return NULL;
}

/* ------------------------------------------------------------------ nodes */

/* How many all the groups of a list are together; HAPI_SIM_NODES_MAX is as much of clients. */
static uint32_t groups_count(const struct hapi_json *list)
{
    uint32_t n = hapi_json_array(list, HAPI_SIM_NODES_MAX), i = 0;
    uint64_t all = 0;

    if (list->state->rc)
        return 0;
    if (!n)
        hapi_json_bad(list, "is empty");
    for (const cJSON *v = list->value->child; v; v = v->next) {
        struct hapi_json at = hapi_json_item(list, v, i++);
        all += count_or(&at, "count", 1, HAPI_SIM_NODES_MAX, 1);
    }
    if (all > HAPI_SIM_NODES_MAX)
        hapi_json_bad(list, "are more than %d", HAPI_SIM_NODES_MAX);
    return list->state->rc ? 0 : (uint32_t)all;
}

static void node_group(struct reader *r, const struct hapi_json *at)
{
    static const char *const keys[] = {"count",      "name",  "bandwidth_Bps", "cores", "devices",
                                       "contention", "speed", "batches",       NULL};
    uint32_t of = count_or(at, "count", 1, HAPI_SIM_NODES_MAX, 1);
    struct hapi_json bandwidth = hapi_json_member(at, "bandwidth_Bps");

    if (!object_of(at, keys))
        return;
    struct hapi_sim_node node = {
        .bandwidth_Bps = hapi_json_number(&bandwidth, 1, 1e18),
        .cores = count_or(at, "cores", 1, 65536, 1),
        .devices = count_or(at, "devices", 0, 65536, 0),
        .contention = number_or(at, "contention", 0, 1, 0),
        .speed = number_or(at, "speed", 1e-6, 1e6, 1),
    };
    node.batches = count_or(at, "batches", 2, 65536, hapi_sim_batches(node.cores));
    for (uint32_t i = 0; i < of && !at->state->rc; i++) {
        node.name = name_of(r, at, i, of, "node", r->s->sim.n_nodes);
        r->nodes[r->s->sim.n_nodes++] = node;
    }
}

static void nodes_read(struct reader *r, const struct hapi_json *list)
{
    uint32_t n = groups_count(list), i = 0;

    r->nodes = n ? hapi_arena_array(r->s->arena, n, sizeof *r->nodes) : NULL;
    if (n && !r->nodes)
        hapi_json_no_memory(list);
    for (const cJSON *v = list->value ? list->value->child : NULL; v && !list->state->rc; v = v->next) {
        struct hapi_json at = hapi_json_item(list, v, i++);
        node_group(r, &at);
    }
}

/* Without a list of nodes they are those of the only profile. */
static void nodes_of_profile(struct reader *r, const struct hapi_json *list)
{
    const struct hapi_profile *p = r->s->profiles[0];

    if (r->s->n_profiles > 1) {
        hapi_json_bad(list, "is missing: of several profiles none says which nodes there are");
        return;
    }
    r->nodes = hapi_arena_array(r->s->arena, p->nodes, sizeof *r->nodes);
    if (!r->nodes) {
        hapi_json_no_memory(list);
        return;
    }
    for (uint32_t i = 0; i < p->nodes && !list->state->rc; i++) {
        r->nodes[i] = hapi_sim_profile_node(p, i);
        if (!r->nodes[i].name)
            r->nodes[i].name = name_of(r, list, 0, 1, "node", i);
    }
    r->s->sim.n_nodes = p->nodes;
}

/* ------------------------------------------------------------------ clients */

static void part_read(const struct hapi_json *at, struct hapi_split_part *out)
{
    static const char *const keys[] = {"cut", "wire", "micro_batch", "node", "share", NULL};
    struct hapi_json cut = hapi_json_member(at, "cut"), wire = hapi_json_member(at, "wire");
    struct hapi_json micro = hapi_json_member(at, "micro_batch"), node = hapi_json_member(at, "node");
    const char *name;

    if (!object_of(at, keys))
        return;
    out->cut = (int32_t)hapi_json_number(&cut, HAPI_SPLIT_NONE, 1 << 24);
    if (cut.value && cut.value->valuedouble != out->cut)
        hapi_json_bad(&cut, "must be the index of a cut, or -1 for no pushdown");
    out->wire = HAPI_WIRE_RAW;
    if (out->cut >= 0 && (name = hapi_json_string(&wire)) && hapi_wire_from_name(&out->wire, name))
        hapi_json_bad(&wire, "is no wire dtype: f32, f16, bf16, int8");
    if (out->cut < 0 && wire.value && !at->state->rc)
        hapi_json_bad(&wire, "is of a cut: raw objects travel as they are");
    out->micro_batch = (uint32_t)hapi_json_count(&micro, 1, HAPI_MICRO_BATCH_MAX);
    out->node = node.value ? (int32_t)hapi_json_count(&node, 0, HAPI_SIM_NODES_MAX) : HAPI_PLAN_ANY_NODE;
    out->share = number_or(at, "share", 0, 1, 1);
}

static void plan_read(struct reader *r, const struct hapi_json *in, struct hapi_sim_client *c)
{
    struct hapi_json list = hapi_json_member(in, "plan");
    uint32_t n = hapi_json_array(&list, HAPI_PLAN_PARTS_MAX), i = 0;
    struct hapi_split_part *parts = n ? hapi_arena_array(r->s->arena, n, sizeof *parts) : NULL;
    struct hapi_err why = {0};

    if (n && !parts)
        hapi_json_no_memory(&list);
    for (const cJSON *v = n ? list.value->child : NULL; v && !in->state->rc; v = v->next, i++) {
        struct hapi_json at = hapi_json_item(&list, v, i);
        part_read(&at, &parts[i]);
    }
    c->plan = (struct hapi_split_plan){parts, n};
    if (in->state->rc || !hapi_split_plan_check(&c->plan, c->profile, c->n_nodes, &why))
        return;
    char path[HAPI_JSON_PATH];
    hapi_json_path(&list, path);
    in->state->rc = hapi_err_set(in->state->err, HAPI_EINVAL, 0, "%s%s%.200s", path,
                                 why.text[0] == '[' ? "" : ": ", why.text);
}

/* `nodes`: the same for all of the group. Without: all; or `spread`, as many for each, the next ones in turn.
 */
static void client_nodes(struct reader *r, const struct hapi_json *at, struct hapi_sim_client *c, uint32_t i)
{
    struct hapi_json list = hapi_json_member(at, "nodes"), spread = hapi_json_member(at, "spread");
    uint32_t all = r->s->sim.n_nodes, n = all, k = 0, first = 0;

    if (list.value && spread.value)
        hapi_json_bad(&spread, "cannot be said with `nodes`");
    if (list.value && !(n = hapi_json_array(&list, all)))
        hapi_json_bad(&list, "is empty");
    if (spread.value) {
        n = (uint32_t)hapi_json_count(&spread, 1, all);
        first = (uint32_t)(((uint64_t)i * n + (uint64_t)i * n / all) % all);
    }
    uint32_t *numbers = at->state->rc ? NULL : hapi_arena_array(r->s->arena, n, sizeof *numbers);
    if (!numbers) {
        hapi_json_no_memory(at);
        return;
    }
    for (const cJSON *v = list.value ? list.value->child : NULL; v; v = v->next, k++) {
        struct hapi_json one = hapi_json_item(&list, v, k);
        numbers[k] = (uint32_t)hapi_json_count(&one, 0, all - 1);
    }
    for (; k < n; k++)
        numbers[k] = (first + k) % all;
    c->nodes = numbers;
    c->n_nodes = n;
}

static void client_group(struct reader *r, const struct hapi_json *at)
{
    static const char *const keys[] = {"count",          "name",          "profile", "plan",  "nodes",
                                       "spread",         "epochs",        "slots",   "depth", "chunk_images",
                                       "request_images", "bandwidth_Bps", "start_s", NULL};
    uint32_t of = count_or(at, "count", 1, HAPI_SIM_CLIENTS_MAX, 1);
    struct hapi_json profile = hapi_json_member(at, "profile");

    if (!object_of(at, keys))
        return;
    const struct hapi_profile *p = profile_find(r, &profile);
    if (!p)
        return;
    struct hapi_sim_client c = hapi_sim_profile_client(p);
    c.epochs = count_or(at, "epochs", 1, HAPI_SCENARIO_EPOCHS_MAX, c.epochs);
    c.slots = count_or(at, "slots", 1, 65536, c.slots);
    c.depth = count_or(at, "depth", 2, 65536, c.depth);
    c.chunk = count_or(at, "chunk_images", 1, HAPI_MICRO_BATCH_MAX, c.chunk);
    c.request_images = count_or(at, "request_images", 1, HAPI_MICRO_BATCH_MAX, c.request_images);
    c.bandwidth_Bps = number_or(at, "bandwidth_Bps", 1, 1e18, c.bandwidth_Bps);
    c.start_s = number_or(at, "start_s", 0, 1e9, 0);
    for (uint32_t i = 0; i < of && !at->state->rc; i++) {
        if (!i || hapi_json_member(at, "spread").value)
            client_nodes(r, at, &c, i);
        if (!i && !at->state->rc)
            plan_read(r, at, &c);
        c.name = name_of(r, at, i, of, "client", r->s->sim.n_clients);
        r->clients[r->s->sim.n_clients++] = c;
    }
}

static void clients_read(struct reader *r, const struct hapi_json *list)
{
    uint32_t n = groups_count(list), i = 0;

    r->clients = n ? hapi_arena_array(r->s->arena, n, sizeof *r->clients) : NULL;
    if (n && !r->clients)
        hapi_json_no_memory(list);
    for (const cJSON *v = list->value ? list->value->child : NULL; v && !list->state->rc; v = v->next) {
        struct hapi_json at = hapi_json_item(list, v, i++);
        client_group(r, &at);
    }
}

/* ------------------------------------------------------------------ all */

static void all_read(struct reader *r, const struct hapi_json *top)
{
    static const char *const keys[] = {"profiles", "nodes", "clients", "switch_Bps", "seed", NULL};
    struct hapi_json nodes = hapi_json_member(top, "nodes"), clients = hapi_json_member(top, "clients");
    struct hapi_json seed = hapi_json_member(top, "seed");

    if (!object_of(top, keys))
        return;
    r->s->sim.switch_Bps = number_or(top, "switch_Bps", 1, 1e18, 0);
    r->s->sim.seed = seed.value ? hapi_json_count(&seed, 0, (uint64_t)1 << 53) : 1;
    profiles_read(r, top);
    if (top->state->rc)
        return;
    if (nodes.value)
        nodes_read(r, &nodes);
    else
        nodes_of_profile(r, &nodes);
    if (!top->state->rc)
        clients_read(r, &clients);
    r->s->sim.nodes = r->nodes;
    r->s->sim.clients = r->clients;
}

int hapi_scenario_parse(struct hapi_scenario **out, const char *text, size_t size, hapi_scenario_load *load,
                        void *arg, struct hapi_err *err)
{
    struct hapi_json_state state = {.err = err};
    struct reader r = {.load = load, .arg = arg};
    struct hapi_arena *a;
    cJSON *root;

    if (size > HAPI_PROFILE_BYTES_MAX)
        return hapi_err_set(err, HAPI_ETOOBIG, 0, "a scenario has at most %zu bytes", HAPI_PROFILE_BYTES_MAX);
    int rc = hapi_json_parse(&root, text, size, err);
    if (rc)
        return rc;
    struct hapi_json top = hapi_json_top(root, &state);
    a = hapi_arena_new(ARENA_MAX);
    r.s = a ? hapi_arena_alloc(a, sizeof *r.s, _Alignof(struct hapi_scenario)) : NULL;
    if (!r.s) {
        hapi_json_no_memory(&top);
        hapi_arena_free(a);
    } else {
        r.s->arena = a;
        all_read(&r, &top);
    }
    cJSON_Delete(root);
    if (state.rc && r.s)
        hapi_scenario_free(r.s);
    else if (!state.rc)
        *out = r.s;
    return state.rc;
}

void hapi_scenario_free(struct hapi_scenario *s)
{
    if (!s)
        return;
    for (uint32_t i = 0; i < s->n_profiles; i++)
        hapi_profile_free(s->profiles[i]);
    hapi_arena_free(s->arena);
}
