/* hapi ls: datasets, objects, samples and classes of storage nodes. */
#include <cjson/cJSON.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "control.h"

static const char help[] = "usage: hapi ls NODE... [--key FILE] [--json]\n\n"
                           "Lists what storage nodes (HOST:PORT) serve.\n\n"
                           "  --key FILE   pre-shared key (identity:hex)\n"
                           "  --json       one JSON object\n"
                           "  --help, --version\n\nexit codes: 0 ok, 1 failure, 2 usage\n";

struct listing {
    const char *node;
    cJSON *datasets;
    bool done, answered;
    struct hapi_err err;
};

static void on_open(struct hapi_control *c, const struct hapi_hello *peer)
{
    struct hapi_msg_text m = {.id = HAPI_MSG_LS};
    uint8_t buf[64];
    int n = hapi_msg_text_encode(&m, buf, sizeof buf);

    (void)peer;
    if (n > 0)
        hapi_control_send(c, HAPI_MSG_LS, buf, (size_t)n);
}

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

static void on_message(struct hapi_control *c, enum hapi_message type, const void *body, size_t n)
{
    struct listing *l = hapi_control_user(c);
    struct hapi_list_cursor cursor;
    struct hapi_msg_dataset d;
    struct hapi_msg_error e;
    int rc;

    if (type == HAPI_MSG_ERROR && !hapi_msg_error_decode(&e, body, n, &l->err)) {
        hapi_err_set(&l->err, e.code, 0, "%.*s", (int)e.text.n, e.text.s);
        hapi_control_finish(c);
    }
    if (type != HAPI_MSG_LS_REPLY)
        return;
    rc = hapi_list_open(&cursor, body, n, &l->err);
    while (!rc && (rc = hapi_list_next_dataset(&cursor, &d, &l->err)) == 1) {
        dataset_add(l, &d);
        rc = 0;
    }
    l->answered = !rc;
    hapi_control_finish(c);
}

static void on_close(struct hapi_control *c, const struct hapi_err *why)
{
    struct listing *l = hapi_control_user(c);
    if (!l->answered && !l->err.code)
        l->err = *why;
    l->done = true;
}

static int list_node(struct hapi_loop *loop, const struct hapi_keys *keys, struct listing *l)
{
    static const struct hapi_control_handler handler = {
        .on_open = on_open, .on_message = on_message, .on_close = on_close};
    struct hapi_control_options opt = {
        .hello = {.major_min = HAPI_PROTO_MAJOR,
                  .major_max = HAPI_PROTO_MAJOR,
                  .minor = HAPI_PROTO_MINOR,
                  .role = {"client", 6},
                  .version = {HAPI_VERSION, sizeof HAPI_VERSION - 1}},
        .keys = keys,
    };
    char host[HAPI_NAME_MAX + 1];
    struct hapi_control *c;
    uint16_t port;

    int rc = hapi_address_parse(l->node, host, &port, &l->err);
    if (!rc)
        rc = hapi_control_connect(&c, loop, host, port, &opt, &handler, l, &l->err);
    while (!rc && !l->done)
        rc = hapi_loop_run_once(loop, -1, &l->err);
    if (!l->answered && !l->err.code)
        hapi_err_set(&l->err, HAPI_ECLOSED, 0, "no answer");
    return l->answered ? 0 : hapi_err_context(&l->err, "node %s", l->node);
}

static void print(const struct listing *l)
{
    const cJSON *d, *c;

    printf("%s\n", l->node);
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
        struct listing l = {.node = nodes[i], .datasets = cJSON_CreateArray()};
        if (list_node(loop, keys, &l)) {
            cmd_fail("ls", &l.err);
            failed = 1;
        } else if (!json) {
            print(&l);
        }
        cJSON *o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "node", nodes[i]);
        if (l.answered)
            cJSON_AddItemToObject(o, "datasets", l.datasets);
        else
            cJSON_Delete(l.datasets);
        if (!l.answered)
            cJSON_AddStringToObject(o, "error", l.err.text);
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
