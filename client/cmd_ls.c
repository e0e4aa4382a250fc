/* hapi ls: datasets, objects, samples and classes of storage nodes. */
#include <cjson/cJSON.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ask.h"
#include "cmd.h"

static const char help[] = "usage: hapi ls NODE... [--key FILE] [--json]\n\n"
                           "Lists what storage nodes (HOST:PORT) serve.\n\n"
                           "  --key FILE   pre-shared key (identity:hex)\n"
                           "  --json       one JSON object\n"
                           "  --help, --version\n\nexit codes: 0 ok, 1 failure, 2 usage\n";

struct listing {
    struct ask ask; /* first: its take() is given it */
    cJSON *datasets;
};

static void dataset_add(struct listing *l, const struct hapi_msg_dataset *d)
{
    cJSON *o = cJSON_CreateObject(), *classes = cJSON_CreateArray();
    struct hapi_str blob = d->classes_blob, name;
    char text[HAPI_NAME_MAX + 1];

    snprintf(text, sizeof text, "%.*s", (int)d->name.n, d->name.s);
    cJSON_AddStringToObject(o, "dataset", text);
    cJSON_AddNumberToObject(o, "objects", (double)d->objects);
    cJSON_AddNumberToObject(o, "samples", (double)d->samples);
    cJSON_AddNumberToObject(o, "bytes", (double)d->bytes);
    cJSON_AddNumberToObject(o, "problems", (double)d->problems);
    while (hapi_classes_next(&blob, &name) == 1) {
        snprintf(text, sizeof text, "%.*s", (int)name.n, name.s);
        cJSON_AddItemToArray(classes, cJSON_CreateString(text));
    }
    cJSON_AddItemToObject(o, "classes", classes);
    cJSON_AddItemToArray(l->datasets, o);
}

static int list_take(struct ask *a, const void *body, size_t n, struct hapi_err *err)
{
    struct listing *l = (struct listing *)a;
    struct hapi_list_cursor cursor;
    struct hapi_msg_dataset d;
    int rc = hapi_list_open(&cursor, body, n, err);

    while (!rc && (rc = hapi_list_next_dataset(&cursor, &d, err)) == 1) {
        dataset_add(l, &d);
        rc = 0;
    }
    return rc;
}

static int list_node(struct hapi_loop *loop, const struct hapi_keys *keys, struct listing *l,
                     struct hapi_err *err)
{
    int rc = ask_connect(&l->ask, loop, keys, err);

    if (!rc)
        rc = ask_wait(&l->ask, -1, err);
    ask_close(&l->ask);
    return rc;
}

static void print(const struct listing *l)
{
    const cJSON *d, *c;

    printf("%s\n", l->ask.node);
    cJSON_ArrayForEach(d, l->datasets)
    {
        const cJSON *classes = cJSON_GetObjectItem(d, "classes");
        int shown = 0;
        printf("  %-20s %6.0f objects %8.0f samples %10.1f MB  %d classes:",
               cJSON_GetObjectItem(d, "dataset")->valuestring, cJSON_GetObjectItem(d, "objects")->valuedouble,
               cJSON_GetObjectItem(d, "samples")->valuedouble,
               1e-6 * cJSON_GetObjectItem(d, "bytes")->valuedouble, cJSON_GetArraySize(classes));
        cJSON_ArrayForEach(c, classes)
        {
            if (shown++ < 10)
                printf(" %s", c->valuestring);
        }
        printf("%s\n", shown > 10 ? " ..." : "");
        if (cJSON_GetObjectItem(d, "problems")->valuedouble > 0)
            printf("    %.0f problems while indexing: see the node's log\n",
                   cJSON_GetObjectItem(d, "problems")->valuedouble);
    }
}

static int list_all(int n, char **nodes, const struct hapi_keys *keys, int json)
{
    struct hapi_loop *loop;
    struct hapi_err err = {0};
    cJSON *all = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(all, "nodes");
    int failed = 0;

    if (hapi_loop_open(&loop, 64, &err)) {
        cJSON_Delete(all);
        return cmd_fail("ls", &err);
    }
    for (int i = 0; i < n; i++) {
        struct listing l = {.ask = {.node = nodes[i],
                                    .question = HAPI_MSG_LS,
                                    .answer = HAPI_MSG_LS_REPLY,
                                    .take = list_take},
                            .datasets = cJSON_CreateArray()};
        int rc = list_node(loop, keys, &l, &err);
        if (rc) {
            cmd_fail("ls", &err);
            failed = 1;
        } else if (!json) {
            print(&l);
        }
        cJSON *o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "node", nodes[i]);
        if (rc) {
            cJSON_Delete(l.datasets);
            cJSON_AddStringToObject(o, "error", err.text);
        } else {
            cJSON_AddItemToObject(o, "datasets", l.datasets);
        }
        cJSON_AddItemToArray(list, o);
    }
    hapi_loop_close(loop);
    if (json) {
        char *text = cJSON_Print(all);
        puts(text ? text : "");
        cJSON_free(text);
    }
    cJSON_Delete(all);
    return failed ? CMD_FAILURE : CMD_OK;
}

int cmd_ls(int argc, char **argv)
{
    static const struct option options[] = {{"key", required_argument, NULL, 'k'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    const char *key = NULL;
    struct hapi_keys *keys = NULL;
    struct hapi_err err = {0};
    int c, json = 0;

    opterr = 0;
    optind = 1;
    while ((c = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (c) {
        case 'k':
            key = optarg;
            break;
        case 'j':
            json = 1;
            break;
        case 'h':
            fputs(help, stdout);
            return CMD_OK;
        case ':':
            return cmd_usage("ls", "%s needs a value", argv[optind - 1]);
        default:
            return cmd_usage("ls", "no option `%s`", argv[optind - 1]);
        }
    }
    if (optind == argc)
        return cmd_usage("ls", "no node was given");
    if (key && hapi_keys_load(&keys, key, &err))
        return cmd_fail("ls", &err);
    c = list_all(argc - optind, argv + optind, keys, json);
    hapi_keys_free(keys);
    return c;
}
