/*
 * A CUDA driver and a cuDNN that compute nothing: they are loaded as the real ones are, and watch that their
 * user keeps the rules: everything made is released, memory is given back only when nothing enqueued may
 * still use it, every pointer lies in memory that lives, a context is current. Each call can be made to fail.
 * What a device would compute is not there: no test may look at it.
 *
 * Device memory is the host's, so that copies are real. Test programs find these functions by dlsym() in
 * libcuda.so.1.
 */
#ifndef HAPI_TESTS_FAKE_CUDA_H
#define HAPI_TESTS_FAKE_CUDA_H

#include <stddef.h>
#include <stdint.h>

/* Each byte of new device memory, as f32 0.0115: of the first 4 MiB of a block, or as the environment says,
 * FAKE_CUDA_FILL_MIB=64. It takes time. */
enum { FAKE_CUDA_FILL = 0x3c };

struct fake_cuda_report {
    long calls;    /* so far, those that can fail */
    long live;     /* things made and not released: contexts, memory, streams, graphs, modules, handles,
                      descriptors */
    long launches; /* of kernels and plans, those of graphs included */
    long graphs;   /* launched */
    long copies;
    size_t bytes, peak; /* of device memory: now, and at most */
    long wrong;         /* rules broken */
    char what[256];     /* the first one */
};

/* Fails the n-th call from now on (1: the next) with `error` of CUDA's; 0: none. cuDNN's calls fail with 5000
 * then. */
void fake_cuda_fail_at(long n, int error);
struct fake_cuda_report fake_cuda_report(void);
/* In the fake cuDNN: a number of milliseconds that making one execution plan takes, and whether one is being
 * made. */
void fake_cudnn_slow(int ms);
int fake_cudnn_making(void);
/* How long each engine takes, in microseconds of the device's clock, in the order in which heuristics propose
 * them; n at most 8, 0: one, in no time. A negative time: this one cannot be run. The environment can say it,
 * too: FAKE_CUDNN_US=30,10,20. And how often plans of an engine have been run, or captured in a graph. */
void fake_cudnn_engines(int n, const double *us);
long fake_cudnn_ran(int engine);
/* As cuDNN 9.10 is: without attention in one op. */
void fake_cudnn_old(int old);
/* Graphs take longer than the launches that they stand for. */
void fake_cuda_graphs_slow(int is);
/* Without a device, cuInit() fails as on a machine that has none. */
void fake_cuda_devices(int n);

/* For the fake cuDNN: whether this call fails; a rule broken; a thing made (+1) or released (-1); whether
 * bytes from p on are in device memory that lives; work enqueued on a stream. */
int fake_cuda_call(void);
void fake_cuda_wrong(const char *what);
void fake_cuda_made(int change);
int fake_cuda_is_device(const void *p, size_t bytes);
void fake_cuda_enqueued(void *stream);
/* What was enqueued takes so long on the device; whether a stream has work that was not waited for. */
void fake_cuda_takes(void *stream, double us);
int fake_cuda_busy(const void *stream);
int fake_cuda_current(void);

#endif
