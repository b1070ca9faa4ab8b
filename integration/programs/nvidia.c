/* Opens NVIDIA's control device and asks the driver for its version, as its library does first. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct version {
	unsigned command, reply;
	char text[64];
};

int main(void)
{
	struct version version = {.command = '2'};
	int fd = open("/dev/nvidiactl", O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		printf("open: %s\n", strerror(errno));
		return 1;
	}
	if (ioctl(fd, _IOWR('F', 210, struct version), &version) < 0) {
		printf("driver: %s\n", strerror(errno));
		return 2;
	}
	printf("driver: %s\n", version.text);
	return 0;
}
