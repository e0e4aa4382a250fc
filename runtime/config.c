#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum kind { STRING, BOOL, UINT, SIZE, ROUTE };

static const struct row {
    const char *name, *value, *arg, *help;
    enum kind kind;
    size_t offset, size;
} rows[] = {
#define X(field, kind, value, arg, help)                                                                     \
    {#field,                                                                                                 \
     value,                                                                                                  \
     arg,                                                                                                    \
     help,                                                                                                   \
     kind,                                                                                                   \
     offsetof(struct hapi_config, field),                                                                    \
     sizeof(((struct hapi_config *)0)->field)},
    HAPI_CONFIG(X)
#undef X
};
enum { ROWS = sizeof rows / sizeof *rows };

/* --read-area and read_area are the same key. */
static const struct row *row_find(const char *name, size_t n)
{
    for (int r = 0; r < ROWS; r++) {
        size_t i = 0;
        while (i < n && rows[r].name[i] &&
               (rows[r].name[i] == name[i] || (rows[r].name[i] == '_' && name[i] == '-')))
            i++;
        if (i == n && !rows[r].name[i])
            return &rows[r];
    }
    return NULL;
}

int hapi_config_number(const char *text, bool suffix, uint64_t max, uint64_t *out)
{
    char *end;

    errno = 0;
    if (!isdigit((unsigned char)*text))
        return HAPI_EINVAL;
    unsigned long long v = strtoull(text, &end, 10);
    if (suffix && *end) {
        const char *units = "kmgt", *u = strchr(units, tolower((unsigned char)*end));
        if (!u || __builtin_mul_overflow(v, 1ULL << (10 * (u - units + 1)), &v))
            return HAPI_EINVAL;
        end++;
    }
    if (errno || *end || v > max)
        return HAPI_EINVAL;
    *out = v;
    return 0;
}

static int set(struct hapi_config *c, const struct row *r, const char *text, struct hapi_err *err)
{
    char *field = (char *)c + r->offset;
    uint64_t v = 0;

    switch (r->kind) {
    case STRING:
        if (strlen(text) >= r->size)
            return hapi_err_set(err, HAPI_EINVAL, 0, "%s: longer than %zu bytes", r->name, r->size - 1);
        memcpy(field, text, strlen(text) + 1);
        return 0;
    case BOOL:
        if (strcmp(text, "true") && strcmp(text, "false"))
            return hapi_err_set(err, HAPI_EINVAL, 0, "%s is true or false, not `%s`", r->name, text);
        *(bool *)field = !strcmp(text, "true");
        return 0;
    case UINT:
        if (hapi_config_number(text, false, UINT32_MAX, &v))
            return hapi_err_set(err, HAPI_EINVAL, 0, "%s takes a number, not `%s`", r->name, text);
        *(uint32_t *)field = (uint32_t)v;
        return 0;
    case SIZE:
        if (hapi_config_number(text, true, INT64_MAX, &v))
            return hapi_err_set(err, HAPI_EINVAL, 0, "%s takes bytes such as 4M, not `%s`", r->name, text);
        *(uint64_t *)field = v;
        return 0;
    case ROUTE:
        if (*text && hapi_config_number(text, false, INT32_MAX, &v))
            return hapi_err_set(err, HAPI_EINVAL, 0, "%s takes a number, not `%s`", r->name, text);
        *(int32_t *)field = *text ? (int32_t)v : -1;
        return 0;
    }
    return HAPI_EINVAL;
}

static char *trim(char *s)
{
    size_t n;

    while (isspace((unsigned char)*s))
        s++;
    for (n = strlen(s); n && isspace((unsigned char)s[n - 1]); n--)
        ;
    s[n] = '\0';
    return s;
}

static int file_read(struct hapi_config *c, const char *path, struct hapi_err *err)
{
    char line[2048];
    FILE *f = fopen(path, "re");
    int rc = 0;

    if (!f)
        return hapi_err_errno(err, errno, "cannot open the config file %s", path);
    for (int n = 1; !rc && fgets(line, sizeof line, f); n++) {
        char *hash = strchr(line, '#'), *eq, *key;
        if (hash)
            *hash = '\0';
        key = trim(line);
        if (!*key)
            continue;
        eq = strchr(key, '=');
        if (eq)
            *eq = '\0';
        key = trim(key);
        const struct row *r = eq ? row_find(key, strlen(key)) : NULL;
        rc = r ? set(c, r, trim(eq + 1), err)
               : hapi_err_set(err, HAPI_EFORMAT, 0,
                              eq ? "no key `%s` (see hapi-rt --help)" : "`%s`: no `key = value`", key);
        if (rc)
            hapi_err_context(err, "%s:%d", path, n);
    }
    fclose(f);
    return rc;
}

void hapi_config_help(FILE *f)
{
    fputs(
        "usage: hapi-rt --data DIR [OPTION...]\n\n"
        "Serves the datasets in DIR: reads images, runs the frozen prefix of a client's network on them and\n"
        "writes the activations into the client's registered memory. Prints `ready HOST:PORT` when it "
        "accepts\n"
        "work; SIGTERM drains and exits 0.\n\n",
        f);
    for (int i = 0; i < ROWS; i++) {
        char flag[64];
        size_t n = (size_t)snprintf(flag, sizeof flag, "--%s %s", rows[i].name, rows[i].arg);
        for (size_t k = 0; k < n && flag[k] != ' '; k++)
            flag[k] = flag[k] == '_' ? '-' : flag[k];
        fprintf(f, "  %-24s %s", flag, rows[i].help);
        if (*rows[i].value && rows[i].kind != BOOL)
            fprintf(f, " [%s]", rows[i].value);
        fputc('\n', f);
    }
    fputs("  --help, --version\n\nexit codes: 0 ok, 1 failure, 2 usage\n", f);
}

/* One pass over the arguments; with c NULL only the config file's name is looked for. */
static int flags_read(struct hapi_config *c, int argc, char **argv, const char **file, struct hapi_err *err)
{
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--", 2))
            return hapi_err_set(err, HAPI_EINVAL, 0, "unexpected argument `%s` (see hapi-rt --help)",
                                argv[i]);
        const char *name = argv[i] + 2, *eq = strchr(name, '='), *value;
        const struct row *r = row_find(name, eq ? (size_t)(eq - name) : strlen(name));
        if (!r)
            return hapi_err_set(err, HAPI_EINVAL, 0, "no option `%s` (see hapi-rt --help)", argv[i]);
        if (eq)
            value = eq + 1;
        else if (r->kind == BOOL)
            value = "true";
        else if (i + 1 < argc)
            value = argv[++i];
        else
            return hapi_err_set(err, HAPI_EINVAL, 0, "%s needs %s (see hapi-rt --help)", argv[i], r->arg);
        if (!strcmp(r->name, "config"))
            *file = value;
        int rc = c ? set(c, r, value, err) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

static int ranges_check(const struct hapi_config *c, struct hapi_err *err)
{
    bool mtu =
        c->mtu == -1 || c->mtu == 256 || c->mtu == 512 || c->mtu == 1024 || c->mtu == 2048 || c->mtu == 4096;

    if (!*c->data && !c->topology)
        return hapi_err_set(err, HAPI_EINVAL, 0, "--data DIR is missing (see hapi-rt --help)");
    if (!c->micro_batch || c->micro_batch > 512 || c->batches < 2 || c->batches > 1024 ||
        c->read_area < 64 << 10 || c->send_area < 64 << 10 || !c->max_sessions || !c->max_requests ||
        c->max_requests > 1024 || c->threads > 1024 || !c->intra_op || c->intra_op > 256)
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "out of range: micro_batch 1..512, batches 2..1024, read_area and send_area >= "
                            "64K, max_sessions >= 1, max_requests 1..1024, threads 0..1024, intra_op 1..256");
    if (strcmp(c->transport, "auto") && strcmp(c->transport, "ofi") && strcmp(c->transport, "verbs"))
        return hapi_err_set(err, HAPI_EINVAL, 0, "transport is auto, ofi or verbs, not `%s`", c->transport);
    if (strcmp(c->adapt, "on") && strcmp(c->adapt, "off"))
        return hapi_err_set(err, HAPI_EINVAL, 0, "adapt is on or off, not `%s`", c->adapt);
    if (!mtu || c->tos > 255 || c->sl > 15 || c->gid_index > 255)
        return hapi_err_set(err, HAPI_EINVAL, 0,
                            "out of range: gid_index 0..255, mtu 256, 512, 1024, 2048 or 4096, tos 0..255, "
                            "sl 0..15");
    return 0;
}

int hapi_config_parse(struct hapi_config *c, int argc, char **argv, struct hapi_err *err)
{
    const char *file = NULL;
    int rc = 0;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return hapi_config_help(stdout), 1;
        if (!strcmp(argv[i], "--version"))
            return puts("hapi-rt " HAPI_VERSION), 1;
    }
    memset(c, 0, sizeof *c);
    for (int i = 0; i < ROWS && !rc; i++)
        rc = set(c, &rows[i], rows[i].value, err);
    if (!rc)
        rc = flags_read(NULL, argc, argv, &file, err);
    if (!rc && file)
        rc = file_read(c, file, err);
    if (!rc)
        rc = flags_read(c, argc, argv, &file, err);
    return rc ? rc : ranges_check(c, err);
}
