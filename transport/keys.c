#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tls.h"

enum { KEYS_MAX = 1024, LINE_BYTES = 512 };

struct hapi_keys {
    size_t n;
    struct hapi_key key[KEYS_MAX];
};

const struct hapi_key *hapi_keys_find(const struct hapi_keys *k, const void *identity, size_t n)
{
    for (size_t i = 0; i < k->n; i++)
        if (strlen(k->key[i].identity) == n && memcmp(k->key[i].identity, identity, n) == 0)
            return &k->key[i];
    return NULL;
}

bool hapi_keys_have(const struct hapi_keys *k, const char *identity)
{
    return hapi_keys_find(k, identity, strlen(identity)) != NULL;
}

const struct hapi_key *hapi_keys_first(const struct hapi_keys *k)
{
    return &k->key[0];
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "identity:hex" without blanks around it. What is wrong, or NULL. */
static const char *parse_line(struct hapi_key *k, const char *s)
{
    const char *colon = strrchr(s, ':');
    size_t name = colon ? (size_t)(colon - s) : 0;

    if (!colon)
        return "no ':' between identity and key";
    if (name == 0 || name > HAPI_PSK_IDENTITY_MAX)
        return "the identity is empty or too long";
    for (size_t i = 0; i < name; i++)
        if (!isgraph((unsigned char)s[i]))
            return "the identity has a blank or a control character in it";
    memcpy(k->identity, s, name);
    k->identity[name] = '\0';
    s = colon + 1;
    size_t digits = strlen(s);
    if (digits % 2 || digits < 2 * HAPI_PSK_KEY_MIN || digits > 2 * HAPI_PSK_KEY_MAX)
        return "the key must be 16 to 64 bytes in hexadecimal";
    for (k->n = 0; k->n < digits / 2; k->n++) {
        int hi = hex_digit(s[2 * k->n]), lo = hex_digit(s[2 * k->n + 1]);
        if (hi < 0 || lo < 0)
            return "the key is not hexadecimal";
        k->key[k->n] = (uint8_t)(hi << 4 | lo);
    }
    return NULL;
}

static char *trim(char *s)
{
    char *end = s + strlen(s);

    while (end > s && isspace((unsigned char)end[-1]))
        *--end = '\0';
    while (isspace((unsigned char)*s))
        s++;
    return s;
}

static int read_keys(struct hapi_keys *k, FILE *f, const char *path, struct hapi_err *err)
{
    char line[LINE_BYTES];
    int rc = 0;

    for (int number = 1; rc == 0 && fgets(line, sizeof line, f); number++) {
        const char *wrong = NULL;
        char *s = trim(line);
        if (*s == '\0' || *s == '#')
            continue;
        if (k->n == KEYS_MAX)
            wrong = "more than 1024 keys";
        else if (!(wrong = parse_line(&k->key[k->n], s)) &&
                 hapi_keys_find(k, k->key[k->n].identity, strlen(k->key[k->n].identity)))
            wrong = "an identity that is there already";
        if (wrong)
            rc = hapi_err_set(err, HAPI_EFORMAT, 0, "%s:%d: %s", path, number, wrong);
        else
            k->n++;
    }
    OPENSSL_cleanse(line, sizeof line);
    if (rc == 0 && ferror(f))
        rc = hapi_err_errno(err, errno, "cannot read %s", path);
    if (rc == 0 && k->n == 0)
        rc = hapi_err_set(err, HAPI_EFORMAT, 0, "%s has no key in it (lines \"identity:hex\")", path);
    return rc;
}

int hapi_keys_load(struct hapi_keys **out, const char *path, struct hapi_err *err)
{
    struct stat st;
    int rc, fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

    if (fd < 0)
        return hapi_err_errno(err, errno, "cannot open key file %s", path);
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return hapi_err_set(err, HAPI_EINVAL, 0, "key file %s is not a regular file", path);
    }
    if (st.st_mode & 077) {
        close(fd);
        return hapi_err_set(err, HAPI_EINVAL, 0, "key file %s can be read by others: chmod 600 it", path);
    }
    FILE *f = fdopen(fd, "r");
    struct hapi_keys *k = calloc(1, sizeof *k);
    if (!f || !k) {
        rc = hapi_err_set(err, HAPI_ENOMEM, 0, "no memory for key file %s", path);
    } else {
        /* Unbuffered: no copy of a key stays behind in the heap. */
        setvbuf(f, NULL, _IONBF, 0);
        rc = read_keys(k, f, path, err);
    }
    if (f)
        fclose(f);
    else
        close(fd);
    if (rc)
        hapi_keys_free(k);
    else
        *out = k;
    return rc;
}

void hapi_keys_free(struct hapi_keys *k)
{
    if (k)
        OPENSSL_cleanse(k, sizeof *k);
    free(k);
}
