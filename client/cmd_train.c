/* hapi train: a linear classifier on features computed beside the data. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"
#include "train.h"

static const char help[] =
    "usage: hapi train MODEL.onnx --nodes HOST:PORT[,...] --dataset NAME --test-dataset NAME [OPTION...]\n\n"
    "Trains a linear classifier on the features at the freeze layer. Epoch 1 fetches them; later epochs use\n"
    "those kept in memory.\n\n"
    "  --freeze TENSOR        cut id: where the frozen part ends [input of the last Gemm]; see hapi cuts\n"
    "  --policy P             none: raw images travel and everything runs here; freeze: the prefix runs on "
    "the\n"
    "                         nodes; by --profile: pipeline, hapi, hapi-v1, which may also mix both, and "
    "cut\n"
    "                         elsewhere [pipeline with --profile, else freeze]\n"
    "  --profile FILE         JSON of hapi profile, of this model and these nodes\n"
    "  --accuracy E           with --profile: what the wire may add to the features, a relative L2 error, or "
    "the\n"
    "                         narrowest dtype (see hapi plan) [f32]\n"
    "  --fixed-plan           with --profile: what was chosen at first stays, whatever the job then shows\n"
    "  --split TENSOR         cut id or `none`: split there, instead of by a policy; see hapi cuts\n"
    "  --wire f32|f16|bf16|int8\n"
    "                         without --profile: dtype of the activations on the wire [f32]; int8: with "
    "scales\n"
    "  --dtype f32|bf16|f16|i8\n"
    "                         compute dtype on both tiers [f32]; f16: on nodes with a GPU, and f32 here "
    "where\n"
    "                         there is none; i8: of a model from hapi calibrate\n"
    "  --backend onednn|cudnn|auto|ref   of this tier [onednn]\n"
    "  --transport T          auto, ofi or verbs; auto: verbs where both sides have it, else ofi [auto]\n"
    "  --device NAME          verbs: RDMA device [the one that routes to the node]\n"
    "  --gid-index N          verbs: its source address, by index in the port's GID table [as routed]\n"
    "  --mtu BYTES            verbs: path MTU: 256, 512, 1024, 2048 or 4096 [as routed]\n"
    "  --tos N                verbs: traffic class, 0..255 [as routed]\n"
    "  --sl N                 verbs: service level, 0..15 [as routed]\n"
    "  --provider tcp|verbs   ofi: provider of libfabric [tcp]\n"
    "  --busy-poll-us N       look for completions so long before sleeping [0: never]\n"
    "  --key FILE             pre-shared key (identity:hex)\n"
    "  --transform FILE       [MODEL.transform.json beside the model]\n"
    "  --batch B              samples of a training step [128]\n"
    "  --epochs E             [20]\n"
    "  --optimizer adam|sgd   [adam]\n"
    "  --lr R                 [0.001]\n"
    "  --momentum M           of sgd [0.9]\n"
    "  --weight-decay D       decoupled [0.0001]\n"
    "  --seed S               of the order [0]\n"
    "  --threads N            compute threads of this tier [one per core]\n"
    "  --keep BYTES           memory for features kept between epochs, e.g. 4G [4G]; 0: fetch every epoch\n"
    "  --keep-disk BYTES      and on disk, for later jobs, too [0]\n"
    "  --keep-dir DIR         where: one job at a time for each dataset\n"
    "  --on-bad skip|fail     a sample that cannot be read or decoded is left out, or ends the job [skip]\n"
    "  --checksum             CRC-32C over every micro-batch\n"
    "  --json FILE            the result\n"
    "  --dump-features PREFIX PREFIX-train.npy, -train-labels.npy, -test.npy, -test-labels.npy and\n"
    "                         -test-predictions.npy, in the dataset's canonical order\n"
    "  --dump-order FILE      `EPOCH SAMPLE` a line, as delivered\n"
    "  --trace FILE           what both tiers did when, for ui.perfetto.dev\n"
    "  --quiet                no progress\n"
    "  --help, --version\n\nexit codes: 0 ok, 1 failure, 2 usage\n";

enum { OPT_HELP = 256, OPT_QUIET, OPT_CHECKSUM, OPT_FIXED };

/* One row an option that takes a value: where it goes. */
enum kind { TEXT, COUNT, COUNT64, REAL, BYTES, CHOICE };
struct row {
    const char *name;
    enum kind kind;
    size_t offset;
    const char *zero, *one; /* CHOICE */
};
#define AT(field) offsetof(struct train_options, field)
static const struct row rows[] = {
    {"nodes", TEXT, AT(loader.nodes), 0, 0},
    {"dataset", TEXT, AT(loader.dataset), 0, 0},
    {"test-dataset", TEXT, AT(test_dataset), 0, 0},
    {"freeze", TEXT, AT(loader.freeze), 0, 0},
    {"policy", TEXT, AT(loader.policy), 0, 0},
    {"split", TEXT, AT(loader.split), 0, 0},
    {"profile", TEXT, AT(loader.profile), 0, 0},
    {"accuracy", TEXT, AT(loader.accuracy), 0, 0},
    {"wire", TEXT, AT(loader.wire), 0, 0},
    {"dtype", TEXT, AT(loader.dtype), 0, 0},
    {"backend", TEXT, AT(loader.backend), 0, 0},
    {"transport", TEXT, AT(loader.transport), 0, 0},
    {"device", TEXT, AT(loader.device), 0, 0},
    {"gid-index", COUNT, AT(path.gid_index), 0, 0},
    {"mtu", COUNT, AT(path.mtu), 0, 0},
    {"tos", COUNT, AT(path.tos), 0, 0},
    {"sl", COUNT, AT(path.sl), 0, 0},
    {"provider", TEXT, AT(loader.provider), 0, 0},
    {"busy-poll-us", COUNT, AT(loader.busy_poll_us), 0, 0},
    {"key", TEXT, AT(loader.key), 0, 0},
    {"transform", TEXT, AT(loader.transform), 0, 0},
    {"json", TEXT, AT(json), 0, 0},
    {"dump-features", TEXT, AT(dump_features), 0, 0},
    {"dump-order", TEXT, AT(dump_order), 0, 0},
    {"trace", TEXT, AT(trace), 0, 0},
    {"batch", COUNT, AT(loader.batch), 0, 0},
    {"epochs", COUNT, AT(epochs), 0, 0},
    {"threads", COUNT, AT(loader.threads), 0, 0},
    {"seed", COUNT64, AT(loader.seed), 0, 0},
    {"keep", BYTES, AT(keep), 0, 0},
    {"keep-disk", BYTES, AT(loader.keep_disk), 0, 0},
    {"keep-dir", TEXT, AT(loader.keep_dir), 0, 0},
    {"lr", REAL, AT(lr), 0, 0},
    {"momentum", REAL, AT(momentum), 0, 0},
    {"weight-decay", REAL, AT(weight_decay), 0, 0},
    {"on-bad", CHOICE, AT(loader.on_bad), "skip", "fail"},
    {"optimizer", CHOICE, AT(adam), "sgd", "adam"},
};
enum { ROWS = sizeof rows / sizeof *rows };

static int number(const char *text, unsigned long long max, int suffix, unsigned long long *out)
{
    char *end;
    static const char units[] = "KMGT";

    if (*text < '0' || *text > '9')
        return -1;
    unsigned long long v = strtoull(text, &end, 10);
    const char *u = suffix && *end ? strchr(units, *end) : NULL;
    if (u) {
        v <<= 10 * (u - units + 1);
        end++;
    }
    *out = v;
    return *end || v > max ? -1 : 0;
}

static int option_set(struct train_options *o, const struct row *r, const char *text)
{
    char *at = (char *)o + r->offset, *end;
    unsigned long long v = 0;

    switch (r->kind) {
    case TEXT:
        *(const char **)at = text;
        return 0;
    case COUNT:
        if (number(text, 1u << 30, 0, &v))
            return -1;
        *(uint32_t *)at = (uint32_t)v;
        return 0;
    case COUNT64:
    case BYTES:
        if (number(text, 1ULL << 62, r->kind == BYTES, &v))
            return -1;
        *(uint64_t *)at = v;
        return 0;
    case REAL:
        *(double *)at = strtod(text, &end);
        return *end || end == text || *(double *)at < 0 ? -1 : 0;
    case CHOICE:
        *(int *)at = !strcmp(text, r->one);
        return strcmp(text, r->zero) && strcmp(text, r->one) ? -1 : 0;
    }
    return -1;
}

static int parse(struct train_options *o, int argc, char **argv)
{
    struct option options[ROWS + 5] = {{0}};
    int c;

    for (int i = 0; i < ROWS; i++)
        options[i] = (struct option){rows[i].name, required_argument, NULL, i};
    options[ROWS] = (struct option){"help", no_argument, NULL, OPT_HELP};
    options[ROWS + 1] = (struct option){"quiet", no_argument, NULL, OPT_QUIET};
    options[ROWS + 2] = (struct option){"checksum", no_argument, NULL, OPT_CHECKSUM};
    options[ROWS + 3] = (struct option){"fixed-plan", no_argument, NULL, OPT_FIXED};
    opterr = 0;
    optind = 1;
    while ((c = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        if (c == OPT_HELP || c == 'h') {
            fputs(help, stdout);
            return -1;
        }
        if (c == OPT_QUIET)
            o->quiet = 1;
        else if (c == OPT_CHECKSUM)
            o->loader.checksum = 1;
        else if (c == OPT_FIXED)
            o->loader.fixed_plan = 1;
        else if (c == ':')
            return cmd_usage("train", "%s needs a value", argv[optind - 1]);
        else if (c < 0 || c >= ROWS)
            return cmd_usage("train", "no option `%s`", argv[optind - 1]);
        else if (option_set(o, &rows[c], optarg))
            return cmd_usage("train", "--%s: `%s` will not do", rows[c].name, optarg);
    }
    if (optind != argc - 1)
        return cmd_usage("train", optind == argc ? "MODEL.onnx is missing" : "one MODEL.onnx, not several");
    o->loader.model = argv[optind];
    if (!o->loader.nodes || !o->loader.dataset || !o->test_dataset)
        return cmd_usage("train", "--nodes, --dataset and --test-dataset must be given");
    if (!o->loader.keep_disk != !o->loader.keep_dir)
        return cmd_usage("train", "--keep-disk and --keep-dir go together");
    if (o->loader.keep_disk) /* what the loader keeps spills over; else the job keeps all or nothing */
        o->loader.keep_memory = o->keep;
    if (!o->epochs || !o->loader.batch)
        return cmd_usage("train", "--epochs and --batch are at least 1");
    return 0;
}

int cmd_train(int argc, char **argv)
{
    struct train_options o = {
        .loader = {.dtype = "f32", .batch = 128},
        .path = HAPI_RDMA_PATH_ANY,
        .epochs = 20,
        .adam = 1,
        .lr = 0.001,
        .momentum = 0.9,
        .weight_decay = 0.0001,
        .keep = 4ULL << 30,
    };
    struct hapi_err err = {0};

    o.loader.path = &o.path;
    int rc = parse(&o, argc, argv);
    if (rc)
        return rc < 0 ? CMD_OK : rc;
    rc = train_run(&o, &err);
    if (!rc)
        return CMD_OK;
    cmd_fail("train", &err);
    return rc == HAPI_EINVAL ? CMD_USAGE : CMD_FAILURE;
}
