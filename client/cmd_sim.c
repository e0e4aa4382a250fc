/* hapi sim: what plans take, simulated. */
#include <cjson/cJSON.h>
#include <getopt.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "file.h"
#include "scenario.h"

static void help(void)
{
    fputs("usage: hapi sim --scenario FILE [--json]\n\n"
          "Simulates jobs on storage nodes and clients, event by event: disks, cores, devices, links, "
          "requests\n"
          "in flight, training, caches. Prints for each epoch of each client how long it took and what was\n"
          "busiest meanwhile, and for each node what its disk, cores, device and link did: busy, blocked "
          "(what\n"
          "comes after has no room), starved (nothing comes).\n\n"
          "  --scenario FILE  profiles, nodes, clients and their plans, as JSON: docs/planner.md\n"
          "  --json           {\"end_s\", \"events\", \"clients\": [{\"name\", \"epochs\": [{\"seconds\", "
          "\"bottleneck\",\n"
          "                   \"resources\": {NAME: {\"busy\", \"blocked\", \"starved\"}}, ...}]}],\n"
          "                   \"nodes\": [{\"name\", \"images\", \"resources\"}], \"switch\"}\n"
          "  --help\n",
          stdout);
}

/* ------------------------------------------------------------------ files */

/* Profiles are found from where the scenario is. */
static int profile_load(void *arg, const char *name, char **text, size_t *size, struct hapi_err *err)
{
    const char *folder = arg;
    void *bytes;
    char path[4096];
    int n = name[0] == '/' ? snprintf(path, sizeof path, "%s", name)
                           : snprintf(path, sizeof path, "%s/%s", folder, name);

    if ((size_t)n >= sizeof path)
        return hapi_err_set(err, HAPI_EINVAL, 0, "the path is too long");
    int rc = hapi_file_read(path, HAPI_PROFILE_BYTES_MAX, &bytes, size, err);
    if (!rc)
        *text = bytes;
    return rc;
}

static int scenario_load(struct hapi_scenario **out, const char *file, struct hapi_err *err)
{
    char *copy = strdup(file);
    void *text = NULL;
    size_t size = 0;
    int rc = copy ? hapi_file_read(file, HAPI_PROFILE_BYTES_MAX, &text, &size, err) : HAPI_ENOMEM;

    if (!rc && hapi_scenario_parse(out, text, size, profile_load, dirname(copy), err))
        rc = hapi_err_context(err, "%.200s", file);
    free(text);
    free(copy);
    return rc;
}

/* ------------------------------------------------------------------ JSON */

static bool number(cJSON *o, const char *key, double v)
{
    return cJSON_AddNumberToObject(o, key, v) != NULL;
}

/* What is not there has no member. */
static bool use_add(cJSON *o, const char *key, const struct hapi_sim_use *u)
{
    if (u->busy + u->blocked + u->starved == 0)
        return true;
    cJSON *use = cJSON_AddObjectToObject(o, key);
    return use && number(use, "busy", u->busy) && number(use, "blocked", u->blocked) &&
           number(use, "starved", u->starved);
}

static bool uses_add(cJSON *o, const struct hapi_sim_use *use, int from)
{
    cJSON *all = cJSON_AddObjectToObject(o, "resources");
    bool ok = all != NULL;

    for (int r = from; r < HAPI_SIM_RESOURCES_N && ok; r++)
        ok = use_add(all, hapi_sim_resource_name((enum hapi_sim_resource)r), &use[r]);
    return ok;
}

static bool epoch_add(cJSON *list, const struct hapi_sim_epoch *e, const struct hapi_sim_scenario *o)
{
    cJSON *j = cJSON_CreateObject();

    if (!j || !cJSON_AddItemToArray(list, j))
        return false;
    bool ok = number(j, "start_s", e->start_s) && number(j, "seconds", e->seconds) &&
              number(j, "trained", (double)e->trained) && number(j, "raw", (double)e->raw) &&
              number(j, "pushed", (double)e->pushed) &&
              number(j, "from_node_cache", (double)e->from_node_cache) &&
              number(j, "from_client_cache", (double)e->from_client_cache) &&
              number(j, "requests", (double)e->requests) && number(j, "wire_bytes", e->wire_bytes) &&
              cJSON_AddStringToObject(j, "bottleneck", hapi_sim_resource_name(e->bottleneck)) &&
              number(j, "bottleneck_busy", e->use[e->bottleneck].busy);
    if (ok && e->bottleneck >= HAPI_SIM_NODE_LINK)
        ok = cJSON_AddStringToObject(j, "bottleneck_node", o->nodes[e->node[e->bottleneck]].name);
    return ok && uses_add(j, e->use, 0);
}

static cJSON *tree(const struct hapi_sim_scenario *o, const struct hapi_sim_result *r)
{
    cJSON *root = cJSON_CreateObject(), *clients, *nodes = NULL;
    bool ok = root && number(root, "end_s", r->end_s) && number(root, "events", (double)r->events) &&
              (clients = cJSON_AddArrayToObject(root, "clients"));

    for (uint32_t i = 0; i < r->n_clients && ok; i++) {
        cJSON *c = cJSON_CreateObject(), *epochs;
        ok = c && cJSON_AddItemToArray(clients, c) &&
             cJSON_AddStringToObject(c, "name", o->clients[i].name) &&
             number(c, "end_s", r->clients[i].end_s) && (epochs = cJSON_AddArrayToObject(c, "epochs"));
        for (uint32_t e = 0; e < r->clients[i].n_epochs && ok; e++)
            ok = epoch_add(epochs, &r->clients[i].epochs[e], o);
    }
    ok = ok && (nodes = cJSON_AddArrayToObject(root, "nodes"));
    for (uint32_t i = 0; i < r->n_nodes && ok; i++) {
        cJSON *n = cJSON_CreateObject();
        ok = n && cJSON_AddItemToArray(nodes, n) && cJSON_AddStringToObject(n, "name", o->nodes[i].name) &&
             number(n, "images", (double)r->nodes[i].images) &&
             uses_add(n, r->nodes[i].use, HAPI_SIM_NODE_LINK);
    }
    if (ok && use_add(root, "switch", &r->switch_use))
        return root;
    cJSON_Delete(root);
    return NULL;
}

static int print_json(const struct hapi_sim_scenario *o, const struct hapi_sim_result *r)
{
    cJSON *root = tree(o, r);
    char *text = root ? cJSON_PrintUnformatted(root) : NULL;

    if (text)
        puts(text);
    else
        fputs("hapi sim: out of memory\n", stderr);
    cJSON_free(text);
    cJSON_Delete(root);
    return text && !ferror(stdout) ? CMD_OK : CMD_FAILURE;
}

/* ------------------------------------------------------------------ tables */

static void print_epochs(const struct hapi_sim_scenario *o, const struct hapi_sim_result *r)
{
    printf("%-20s %5s %11s %11s %11s  %s\n", "client", "epoch", "seconds", "images/s", "MB", "busiest");
    for (uint32_t i = 0; i < r->n_clients; i++)
        for (uint32_t k = 0; k < r->clients[i].n_epochs; k++) {
            const struct hapi_sim_epoch *e = &r->clients[i].epochs[k];
            printf("%-20s %5" PRIu32 " %11.4f %11.1f %11.2f  %s", o->clients[i].name, k + 1, e->seconds,
                   e->seconds > 0 ? (double)e->trained / e->seconds : 0, 1e-6 * e->wire_bytes,
                   hapi_sim_resource_name(e->bottleneck));
            if (e->bottleneck >= HAPI_SIM_NODE_LINK)
                printf(" of %s", o->nodes[e->node[e->bottleneck]].name);
            printf(", %.0f %%\n", 100 * e->use[e->bottleneck].busy);
        }
}

static void print_use(const struct hapi_sim_use *u)
{
    if (u->busy + u->blocked + u->starved == 0)
        printf(" %14s", "-");
    else
        printf(" %4.0f %4.0f %4.0f", 100 * u->busy, 100 * u->blocked, 100 * u->starved);
}

static void print_nodes(const struct hapi_sim_scenario *o, const struct hapi_sim_result *r)
{
    printf("\nbusy, blocked, starved in %%, of %.4f s\n%-20s %10s %14s %14s %14s %14s\n", r->end_s, "node",
           "images", "link", "cores", "device", "disk");
    for (uint32_t i = 0; i < r->n_nodes; i++) {
        printf("%-20s %10" PRIu64, o->nodes[i].name, r->nodes[i].images);
        for (int k = HAPI_SIM_NODE_LINK; k < HAPI_SIM_RESOURCES_N; k++)
            print_use(&r->nodes[i].use[k]);
        putchar('\n');
    }
    if (o->switch_Bps > 0) {
        printf("%-20s %10s", "switch", "");
        print_use(&r->switch_use);
        putchar('\n');
    }
}

/* Of each client's own resources, in its last epoch. */
static void print_clients(const struct hapi_sim_scenario *o, const struct hapi_sim_result *r)
{
    printf("\nthe same of each client's last epoch\n%-20s %14s %14s %14s %14s\n", "client", "training",
           "cores", "device", "link");
    for (uint32_t i = 0; i < r->n_clients; i++) {
        const struct hapi_sim_epoch *e = &r->clients[i].epochs[r->clients[i].n_epochs - 1];
        printf("%-20s", o->clients[i].name);
        for (int k = HAPI_SIM_TRAIN; k <= HAPI_SIM_CLIENT_LINK; k++)
            print_use(&e->use[k]);
        putchar('\n');
    }
}

static int run(const char *file, bool json)
{
    struct hapi_scenario *s = NULL;
    struct hapi_sim_result *r;
    struct hapi_err err = {0};
    int rc = CMD_OK;

    if (scenario_load(&s, file, &err))
        return cmd_fail("sim", &err);
    if (hapi_sim_run(&r, &s->sim, &err)) {
        hapi_scenario_free(s);
        return cmd_fail("sim", &err);
    }
    if (json) {
        rc = print_json(&s->sim, r);
    } else {
        print_epochs(&s->sim, r);
        print_clients(&s->sim, r);
        print_nodes(&s->sim, r);
        rc = ferror(stdout) ? CMD_FAILURE : CMD_OK;
    }
    hapi_sim_result_free(r);
    hapi_scenario_free(s);
    return rc;
}

int cmd_sim(int argc, char **argv)
{
    static const struct option options[] = {{"scenario", required_argument, NULL, 's'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    const char *file = NULL;
    bool json = false;
    int c;

    optind = 1;
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":h", options, NULL)) != -1)
        switch (c) {
        case 'h':
            help();
            return CMD_OK;
        case 's':
            file = optarg;
            break;
        case 'j':
            json = true;
            break;
        default:
            return cmd_usage("sim", c == ':' ? "%s needs a value" : "unknown option %s", argv[optind - 1]);
        }
    if (optind != argc)
        return cmd_usage("sim", "%s is no option", argv[optind]);
    if (!file)
        return cmd_usage("sim", "no --scenario given");
    return run(file, json);
}
