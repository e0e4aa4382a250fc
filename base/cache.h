/*
 * What was measured or compiled, kept as text between runs: a folder for each kind of thing, a file for each.
 * What does not fit is made anew; a folder that cannot be used costs time and is no error. Any thread, and
 * any number of processes.
 */
#ifndef HAPI_BASE_CACHE_H
#define HAPI_BASE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HAPI_CACHE_NAME = 64 + 1 };

/* $HAPI_CACHE, else $XDG_CACHE_HOME/hapi, else ~/.cache/hapi; with /kind. Only absolute paths count. It is
 * not made. false: nowhere, or too long for buf. */
bool hapi_cache_folder(char *buf, size_t size, const char *kind);
/* A key of n bytes as a part of a file's name: its SHA-256 in hex. */
void hapi_cache_name(char out[HAPI_CACHE_NAME], const void *key, size_t n);
/* The file's text, terminated, to be freed; NULL when it is not there, or not a file of this user's of at
 * most 4 MiB. Whether it is what it should be is for the caller to find out. */
char *hapi_cache_read(const char *folder, const char *file);
/* Keeps it, whole or not at all; the folder is made (0700) with the first. first: not where there is one.
 * Whether it is there now. */
bool hapi_cache_write(const char *folder, const char *file, const char *text, bool first);
/* Whether there was such a file. */
bool hapi_cache_drop(const char *folder, const char *file);

#endif
