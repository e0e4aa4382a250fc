/* hapi-rt: the daemon of a storage node. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "runtime.h"
#include "topology.h"

struct signals {
    struct hapi_watch watch;
    struct hapi_rt *rt;
};

static void on_signal(struct hapi_watch *w, uint32_t revents)
{
    struct signals *s = (struct signals *)w;
    struct signalfd_siginfo info;

    (void)revents;
    while (read(w->fd, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGHUP) {
            /* systemd waits for READY, and knows by the time that it is of this signal */
            sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%lld", (long long)(hapi_clock_ns() / 1000));
            hapi_rt_reload(s->rt);
            sd_notify(0, "READY=1");
            continue;
        }
        hapi_log(HAPI_LOG_INFO, "draining", "signal=%s", strsignal((int)info.ssi_signo));
        sd_notify(0, "STOPPING=1\nSTATUS=Draining");
        hapi_rt_drain(s->rt);
    }
}

/* Each client takes several descriptors, each sample that is being read one; the soft limit is often 1024. */
static void files_raise(void)
{
    struct rlimit lim;

    if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < lim.rlim_max) {
        lim.rlim_cur = lim.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &lim))
            hapi_log(HAPI_LOG_WARN, "cannot raise the limit of open files", "why=\"%s\"", strerror(errno));
    }
}

static void say_ready(const struct hapi_rt *rt)
{
    const struct hapi_config *cfg = &rt->cfg;
    char offered[16], without[HAPI_ERR_TEXT + 32] = "", quoted[HAPI_ERR_TEXT];
    const char *bracket = strchr(rt->host, ':') ? "[]" : "";

    for (int t = 0; t < HAPI_TRANSPORTS; t++)
        if (!rt->offers[t].fabric) /* at least one is offered */
            snprintf(without, sizeof without, " without=%s why=%s", hapi_transport_names[t],
                     hapi_log_quote(quoted, sizeof quoted, rt->offers[t].why.text));
    hapi_log(HAPI_LOG_INFO, "ready", "listen=%s:%u transport=%s%s class=%s threads=%u slab_mib=%zu", rt->host,
             hapi_rt_port(rt), hapi_fabrics_text(rt, offered), without, hapi_numeric_class(rt->cfg.backend),
             cfg->threads, rt->slab.size >> 20);
    if (rt->no_gpu.code)
        hapi_log(HAPI_LOG_INFO, "no gpu", "backend=%s why=%s", rt->cfg.backend,
                 hapi_log_quote(quoted, sizeof quoted, rt->no_gpu.text));
    if (hapi_cpu_warning())
        hapi_log(HAPI_LOG_WARN, "cpu", "why=%s", hapi_log_quote(quoted, sizeof quoted, hapi_cpu_warning()));
    printf("ready %.1s%s%s:%u\n", bracket, rt->host, *bracket ? "]" : "", hapi_rt_port(rt));
    fflush(stdout);
    sd_notifyf(0, "READY=1\nSTATUS=Serving at %s:%u", rt->host, hapi_rt_port(rt));
}

/* --topology: where compute threads, and what is near them, would be. */
static int topology_print(const struct hapi_config *cfg, struct hapi_err *err)
{
    static char text[1 << 16];
    struct hapi_topology *t;
    int rc = hapi_topology_open(&t, err);

    if (rc)
        return rc;
    int width = (int)cfg->intra_op, n = cfg->threads ? (int)cfg->threads : hapi_topology_cores(t) / width;
    fputs(hapi_topology_text(t, text, sizeof text), stdout);
    for (int i = 0; i < (n ? n : 1); i++) {
        int first = hapi_pool_core(t, width, i);
        printf("compute thread %d: core%s %d", i, width > 1 ? "s" : "", first);
        if (width > 1)
            printf(" to %d", first + width - 1);
        printf(", memory of node %d\n", hapi_topology_core_numa(t, first));
    }
    puts("I/O thread: any core; its memory is where it is registered");
    hapi_topology_close(t);
    return 0;
}

static int serve(const struct hapi_config *cfg, int signal_fd, struct hapi_err *err)
{
    struct hapi_rt *rt;
    struct signals signals = {.watch = {.ready = on_signal, .fd = signal_fd, .events = POLLIN}};

    int rc = hapi_rt_open(&rt, cfg, err);
    if (rc)
        return rc;
    signals.rt = rt;
    rc = hapi_loop_watch(rt->loop, &signals.watch);
    if (!rc) {
        say_ready(rt);
        rc = hapi_rt_run(rt, err);
        hapi_loop_unwatch(&signals.watch);
    }
    hapi_rt_close(rt);
    return rc;
}

int main(int argc, char **argv)
{
    static struct hapi_config cfg;
    static const char *const levels[] = {"debug", "info", "warn", "error"};
    struct hapi_err err = {0};
    sigset_t set;
    int level = -1;

    int rc = hapi_config_parse(&cfg, argc, argv, &err);
    if (!rc && cfg.topology)
        rc = topology_print(&cfg, &err) ? HAPI_ESYS : 1;
    if (rc == 1)
        return 0;
    if (rc) {
        fprintf(stderr, "hapi-rt: %s\n", err.text);
        return rc == HAPI_EINVAL ? 2 : 1;
    }
    for (int i = 0; i < 4; i++)
        if (!strcmp(cfg.log_level, levels[i]))
            level = i;
    if (level < 0) {
        fprintf(stderr, "hapi-rt: --log-level is debug, info, warn or error, not `%s`\n", cfg.log_level);
        return 2;
    }
    hapi_log_level_set((enum hapi_log_level)level);
    signal(SIGPIPE, SIG_IGN);
    files_raise();
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL); /* before any thread, so that only the signalfd sees them */
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0) {
        fprintf(stderr, "hapi-rt: cannot open a signalfd: %s\n", strerror(errno));
        return 1;
    }
    rc = serve(&cfg, fd, &err);
    close(fd);
    if (rc)
        fprintf(stderr, "hapi-rt: %s\n", err.text);
    return rc ? 1 : 0;
}
