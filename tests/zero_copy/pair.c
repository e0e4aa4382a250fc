#include "pair.h"

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/eventfd.h>

#include "build_model.h"
#include "jpegs.h"
#include "log.h"
#include "runtime.h"
#include "tree.h"

struct pair {
    struct hapi_config config;
    struct hapi_rt *rt;
    sem_t opened;
    pthread_t thread;
    struct hapi_watch stop;
    char model[300], address[64];
};

static void images_write(void)
{
    folder("data");
    folder("data/set");
    folder("data/set/a");
    folder("data/set/b");
    for (int i = 0; i < PAIR_SAMPLES; i++) {
        char name[64];
        struct jpeg_bytes j = jpeg_make(JPEG_RGB, 40 + i, 36 + i % 7, -1);
        snprintf(name, sizeof name, "data/set/%s/%02d.jpg", i % 2 ? "a" : "b", i);
        file_bytes(name, j.p, j.n);
        free(j.p);
    }
}

static void model_write(void)
{
    static const char transform[] = "{\"resize\": 32, \"crop\": 32, \"mean\": [127,127,127], "
                                    "\"std\": [128,128,128], \"scale\": 1}";
    struct build b = {0};
    size_t size;

    INPUT(&b, "x", -1, 3, 32, 32);
    OUTPUT(&b, "y");
    WEIGHTS(&b, "w1", 16, 3, 3, 3);
    WEIGHTS(&b, "w2", 256, 16, 3, 3);
    WEIGHTS(&b, "w3", 10, 256);
    WEIGHTS(&b, "b3", 10);
    INTS(&b, "pads", 1, 1, 1, 1);
    build_node(&b, "Conv", "/stem/conv/Conv", "x,w1", "stem_conv");
    build_node(&b, "Relu", "/stem/relu/Relu", "stem_conv", PAIR_CONV);
    INTS(&b, "strides", 2, 2);
    build_node(&b, "Conv", "/body/conv/Conv", PAIR_CONV ",w2", "body_conv");
    build_node(&b, "Relu", "/body/relu/Relu", "body_conv", "body_relu");
    build_node(&b, "GlobalAveragePool", "/pool/GlobalAveragePool", "body_relu", "pooled");
    build_node(&b, "Flatten", "/Flatten", "pooled", PAIR_POOL);
    build_int(&b, "transB", 1);
    build_node(&b, "Gemm", "/fc/Gemm", PAIR_POOL ",w3,b3", "y");
    void *model = build_finish(&b, 8, 13, &size);
    file_bytes("net.onnx", model, size);
    file_bytes("net.transform.json", transform, strlen(transform));
    free(model);
}

static void stop(struct hapi_watch *w, uint32_t revents)
{
    struct pair *p = (struct pair *)((char *)w - offsetof(struct pair, stop));

    (void)revents;
    hapi_loop_unwatch(w);
    hapi_rt_drain(p->rt);
}

/* Opened where it runs: the ring serves one thread. */
static void *serve(void *arg)
{
    struct pair *p = arg;
    struct hapi_err err = {0};

    int rc = hapi_rt_open(&p->rt, &p->config, &err);
    if (!rc)
        rc = hapi_loop_watch(p->rt->loop, &p->stop);
    sem_post(&p->opened);
    if (!rc)
        rc = hapi_rt_run(p->rt, &err);
    if (rc) {
        fprintf(stderr, "the node: %s\n", err.text);
        exit(1);
    }
    hapi_rt_close(p->rt);
    return NULL;
}

struct pair *pair_open(const char *backend)
{
    struct pair *p = calloc(1, sizeof *p);
    struct hapi_err err = {0};
    char args[9][320] = {"hapi-rt", "--data", "", "--listen=127.0.0.1:0", "--transport=ofi", "--threads=2"};
    char *argv[9];

    REQUIRE(p);
    tree_new();
    images_write();
    model_write();
    snprintf(args[2], sizeof args[2], "%s", at("data"));
    snprintf(args[6], sizeof args[6], "--backend=%s", backend);
    snprintf(args[7], sizeof args[7], "--micro-batch=%d", PAIR_MICRO_BATCH);
    for (int i = 0; i < 9; i++)
        argv[i] = i < 8 ? args[i] : NULL;
    hapi_log_level_set(HAPI_LOG_ERROR);
    if (hapi_config_parse(&p->config, 8, argv, &err)) {
        fprintf(stderr, "no node: %s\n", err.text);
        exit(1);
    }
    p->stop = (struct hapi_watch){.ready = stop, .fd = eventfd(0, EFD_CLOEXEC), .events = POLLIN};
    REQUIRE(p->stop.fd >= 0 && !sem_init(&p->opened, 0, 0));
    REQUIRE(!pthread_create(&p->thread, NULL, serve, p));
    REQUIRE(!sem_wait(&p->opened) && p->rt);
    snprintf(p->address, sizeof p->address, "127.0.0.1:%u", hapi_rt_port(p->rt));
    snprintf(p->model, sizeof p->model, "%s", at("net.onnx"));
    return p;
}

void pair_close(struct pair *p)
{
    REQUIRE(!eventfd_write(p->stop.fd, 1));
    pthread_join(p->thread, NULL);
    close(p->stop.fd);
    sem_destroy(&p->opened);
    free(p);
    tree_free();
}

struct hapi_loader_options pair_options(const struct pair *p)
{
    return (struct hapi_loader_options){
        .model = p->model,
        .nodes = p->address,
        .dataset = "set",
        .transport = "ofi",
        .batch = 16,
        .threads = 2,
        .seed = 1,
    };
}
