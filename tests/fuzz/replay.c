/* Replays a corpus folder (and every prefix-truncation of its small files) through a fuzz target. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(const char *path)
{
    FILE *f = fopen(path, "rb");
    static uint8_t buf[1 << 20];

    if (!f)
        return perror(path), 1;
    size_t n = fread(buf, 1, sizeof buf, f);
    fclose(f);
    /* A copy of the exact size, so that a sanitizer sees one byte too far. */
    for (size_t cut = n <= 2048 ? 0 : n;; cut++) {
        uint8_t *exact = malloc(cut ? cut : 1);
        if (!exact)
            return 1;
        memcpy(exact, buf, cut);
        LLVMFuzzerTestOneInput(exact, cut);
        free(exact);
        if (cut >= n)
            return 0;
    }
}

int main(int argc, char **argv)
{
    int files = 0;

    for (int i = 1; i < argc; i++) {
        struct dirent *e;
        DIR *d = opendir(argv[i]);
        if (!d)
            return perror(argv[i]), 1;
        while ((e = readdir(d))) {
            char path[4096];
            if (e->d_name[0] == '.')
                continue;
            snprintf(path, sizeof path, "%s/%s", argv[i], e->d_name);
            if (replay(path))
                return 1;
            files++;
        }
        closedir(d);
    }
    printf("%d files replayed\n", files);
    return files ? 0 : 1;
}
