/*
 * Memory that a process shares with its forks, and that a fork gives back.
 *
 * A fork owns each page that it has written to, though most of what an interpreter writes is the
 * number of references to an object, up and down again.  So the fork server's objects are made
 * immortal, by a number so large that no fork counts it down, and its memory becomes a private
 * mapping of a file in memory.  A fork drops its copy of each page that is what it was, but for
 * such numbers, and has the server's again.
 *
 * That nothing is lost, a page may not be written to between the comparison and the drop.  Python
 * writes to objects under the interpreter's lock, which is held meanwhile.  A system call writes to
 * a buffer without it.  So on a page with objects of the server's no room is used again that was
 * freed (gv_free); such a page may be given back if the one before it has objects, too, as a longer
 * block that was freed could reach into it else; and the pages of what the server has of buffers
 * and locks are kept out.
 */
#define GV_IMMORTAL 0x00a753c140000000ull
#define GV_IS_IMMORTAL(word) ((word) >> 32 == GV_IMMORTAL >> 32)
#define GV_PAGE 4096u
#define GV_MOST_RANGES 64
#define GV_HAS_OBJECTS 1
#define GV_MAY_BE_GIVEN 2
#define GV_IS_USED 4
#define GV_ENTRIES 512

static struct gv_range {
    char *start, *end;
    const char *original;
    int heap; /* it is the C library's, which goes on beyond the end */
    unsigned char *pages; /* of each: GV_HAS_OBJECTS, GV_MAY_BE_GIVEN, GV_IS_USED */
} gv_ranges[GV_MOST_RANGES];
static int gv_range_count;

/* Of cpython/pymem.h, which is no part of the limited API; the same since Python 3.5. */
struct gv_allocator {
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
};
extern void PyMem_GetAllocator(int domain, struct gv_allocator *) __attribute__((weak));
extern void PyMem_SetAllocator(int domain, struct gv_allocator *) __attribute__((weak));
static struct gv_allocator gv_inner[3];

/* Make an object immortal; twice is as good as once. */
void gv_keep_object(uintptr_t object)
{
    uint64_t *count = (uint64_t *)object;

    if (*count >> 32 == 0)
        *count += GV_IMMORTAL;
}

static struct gv_range *gv_range_of(uintptr_t address)
{
    for (int i = 0; i < gv_range_count; i++)
        if (address >= (uintptr_t)gv_ranges[i].start && address < (uintptr_t)gv_ranges[i].end)
            return &gv_ranges[i];
    return NULL;
}

/* Whether a block begins on a page with objects of the server's. */
static struct gv_range *gv_is_kept(uintptr_t block)
{
    struct gv_range *range = gv_range_of(block);

    if (!range || !(range->pages[(block - (uintptr_t)range->start) / GV_PAGE] & GV_HAS_OBJECTS))
        return NULL;
    return range;
}

static void *gv_malloc(void *context, size_t size)
{
    struct gv_allocator *inner = context;
    return inner->malloc(inner->context, size);
}

static void *gv_calloc(void *context, size_t count, size_t size)
{
    struct gv_allocator *inner = context;
    return inner->calloc(inner->context, count, size);
}

static void *gv_realloc(void *context, void *old, size_t size)
{
    struct gv_allocator *inner = context;
    struct gv_range *range = gv_is_kept((uintptr_t)old);

    if (!range)
        return inner->realloc(inner->context, old, size);
    /* Its own size isn't known.  What follows can be read, up to the end of the mapping. */
    char *top = sbrk(0), *end = range->heap ? top : range->end;
    size_t most = (size_t)(end - (char *)old);
    void *new = inner->malloc(inner->context, size);
    if (new)
        memcpy(new, old, size < most ? size : most);
    return new;
}

static void gv_free(void *context, void *old)
{
    struct gv_allocator *inner = context;
    if (!gv_is_kept((uintptr_t)old))
        inner->free(inner->context, old);
}

/* What a page has: nothing, something, objects. */
static int gv_look_at(const char *page)
{
    const uint64_t *words = (const uint64_t *)page;
    uint64_t all = 0;

    for (size_t i = 0; i < GV_PAGE / 8; i++) {
        if (GV_IS_IMMORTAL(words[i]))
            return 2;
        all |= words[i];
    }
    return all != 0;
}

/* The C library's heap goes on behind what is in use: where that ends, by whole pages. */
static char *gv_heap_end(void)
{
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
    return (char *)(((uintptr_t)sbrk(0) - mallinfo2().keepcost) & ~(uintptr_t)(GV_PAGE - 1));
#else
    return NULL; /* it doesn't tell */
#endif
}

/*
 * Have forks share these ranges of whole pages, each a start and an end, of the heap what is in use.
 * The caller has one thread, no fork yet, and its stack elsewhere.  -1 and errno if nothing has
 * changed.
 */
int gv_share_pages(uintptr_t *ranges, int count)
{
    const uintptr_t top = (uintptr_t)sbrk(0), used = (uintptr_t)gv_heap_end();
    size_t total = 0, offset = 0;
    const char *originals;
    unsigned char *pages;
    int fd, saved;

    if (!PyMem_SetAllocator || count > GV_MOST_RANGES || sysconf(_SC_PAGESIZE) != GV_PAGE) {
        errno = ENOSYS;
        return -1;
    }
    for (int i = 0; i < count; i++) {
        if (ranges[2 * i] < top && ranges[2 * i + 1] >= top)
            ranges[2 * i + 1] = used > ranges[2 * i] ? used : ranges[2 * i];
        total += ranges[2 * i + 1] - ranges[2 * i];
    }
    fd = memfd_create("gvisor-forksrv", MFD_CLOEXEC | 8u /* MFD_NOEXEC_SEAL, Linux 6.3 */);
    if (fd < 0)
        fd = memfd_create("gvisor-forksrv", MFD_CLOEXEC);
    if (fd < 0)
        return -1;
    originals = MAP_FAILED;
    pages = mmap(NULL, total / GV_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || ftruncate(fd, (off_t)total))
        goto failed;
    originals = mmap(NULL, total, PROT_READ, MAP_SHARED, fd, 0);
    if (originals == MAP_FAILED)
        goto failed;
    for (int i = 0; i < count; i++) {
        char *start = (char *)ranges[2 * i];
        size_t size = ranges[2 * i + 1] - ranges[2 * i];
        for (size_t done = 0; done < size; done += GV_PAGE, offset += GV_PAGE) {
            int found = gv_look_at(start + done);
            unsigned char *page = &pages[offset / GV_PAGE];
            *page = found ? GV_IS_USED : 0;
            if (found == 2)
                *page |= GV_HAS_OBJECTS;
            if (found == 2 && done && page[-1] & GV_HAS_OBJECTS)
                *page |= GV_MAY_BE_GIVEN;
            /* One that was never used has no memory, and gets none. */
            if (found && pwrite(fd, start + done, GV_PAGE, (off_t)offset) != GV_PAGE)
                goto failed;
        }
    }
    offset = 0;
    for (int i = 0; i < count; i++) {
        struct gv_range *range = &gv_ranges[gv_range_count];
        size_t size = ranges[2 * i + 1] - ranges[2 * i];
        if (!size)
            continue; /* nothing is known of it */
        range->start = (char *)ranges[2 * i];
        if (mmap(range->start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd,
                 (off_t)offset) == MAP_FAILED)
            break; /* it stays what it is: memory of our own */
        range->end = range->start + size;
        range->original = originals + offset;
        range->pages = pages + offset / GV_PAGE;
        range->heap = (uintptr_t)range->end == used;
        for (size_t page = 0; page < size / GV_PAGE; page++)
            if (range->pages[page]) /* it counts as this process's, too, not only its forks' */
                (void)*(volatile char *)(range->start + page * GV_PAGE);
        offset += size;
        gv_range_count++;
    }
    madvise((void *)originals, total, MADV_DONTNEED);
    close(fd);
    for (int domain = 0; domain < 3; domain++) {
        struct gv_allocator outer = {&gv_inner[domain], gv_malloc, gv_calloc, gv_realloc, gv_free};
        PyMem_GetAllocator(domain, &gv_inner[domain]);
        PyMem_SetAllocator(domain, &outer);
    }
    return 0;

failed:
    saved = errno;
    if (pages != MAP_FAILED)
        munmap(pages, total / GV_PAGE);
    if (originals != MAP_FAILED)
        munmap((void *)originals, total);
    close(fd);
    errno = saved;
    return -1;
}

/* Never give back the pages of this object, nor any that it points into. */
void gv_exclude_pages(uintptr_t object, size_t size)
{
    for (uintptr_t at = object; at < object + size; at += 8) {
        uintptr_t places[2] = {at, *(uintptr_t *)at};
        for (int i = 0; i < 2; i++) {
            struct gv_range *range = gv_range_of(places[i]);
            if (!range)
                continue;
            size_t page = (places[i] - (uintptr_t)range->start) / GV_PAGE;
            range->pages[page] &= ~GV_MAY_BE_GIVEN;
            if (range->start + (page + 1) * GV_PAGE < range->end)
                range->pages[page + 1] &= ~GV_MAY_BE_GIVEN;
        }
    }
}

static int gv_is_as_it_was(const char *now, const char *original)
{
    const uint64_t *one = (const uint64_t *)now, *other = (const uint64_t *)original;

    for (size_t i = 0; i < GV_PAGE / 8; i++)
        if (one[i] != other[i] && !(GV_IS_IMMORTAL(one[i]) && GV_IS_IMMORTAL(other[i])))
            return 0;
    return 1;
}

/* In a fork: drop the copies of all pages that are as they were; how many. */
long gv_give_back(void)
{
    uint64_t entries[GV_ENTRIES];
    long given = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return 0;
    PyGILState_STATE state = PyGILState_Ensure();
    for (int r = 0; r < gv_range_count; r++) {
        struct gv_range *range = &gv_ranges[r];
        size_t pages = (size_t)(range->end - range->start) / GV_PAGE;
        for (size_t page = 0; page < pages; page++) {
            size_t at = page % GV_ENTRIES;
            off_t where = (off_t)((uintptr_t)range->start / GV_PAGE + page) * 8;
            if (at == 0 && pread(fd, entries, sizeof(entries), where) < 8)
                break;
            /* It is there, and no page of the file's. */
            if (entries[at] >> 63 && !(entries[at] >> 61 & 1) && range->pages[page] & GV_MAY_BE_GIVEN
                && gv_is_as_it_was(range->start + page * GV_PAGE, range->original + page * GV_PAGE))
                given += !madvise(range->start + page * GV_PAGE, GV_PAGE, MADV_DONTNEED);
        }
        madvise((void *)range->original, (size_t)(range->end - range->start), MADV_DONTNEED);
    }
    PyGILState_Release(state);
    close(fd);
    return given;
}
