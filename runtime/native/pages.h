void gv_keep_object(uintptr_t object);
int gv_share_pages(uintptr_t *ranges, int count);
void gv_exclude_pages(uintptr_t object, size_t size);
long gv_give_back(void);
