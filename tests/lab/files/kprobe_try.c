// Copyright (c) The tapvirt.host authors
// GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Asks the kernel itself where it takes a kprobe: /proc/tapvirt_kprobe_try takes lines "ADDRESS" (0x...) or "NAME",
 * registers a probe without a handler at each, and takes it away again; reading gives one return code for each line.
 * A line "disabled" leaves those after it registered but never armed: quick enough for all functions of a kernel.
 */
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#define BATCH 256
#define LARGEST (8 << 20)

static DEFINE_MUTEX(lock);
static char *answer;
static size_t length;
static struct kprobe *probes[BATCH];
static int held;

static void release(void)
{
	int i;

	if (held)
		unregister_kprobes(probes, held);
	for (i = 0; i < held; i++)
		kfree(probes[i]);
	held = 0;
}

static void try_one(char *place, bool disabled)
{
	struct kprobe *probe = kzalloc(sizeof(*probe), GFP_KERNEL);
	int rc = -ENOMEM;

	if (probe) {
		unsigned long address;

		if (!strncmp(place, "0x", 2) && !kstrtoul(place, 16, &address))
			probe->addr = (kprobe_opcode_t *)address;
		else
			probe->symbol_name = place;
		if (disabled)
			probe->flags = KPROBE_FLAG_DISABLED;
		rc = register_kprobe(probe);
		if (rc) {
			kfree(probe);
		} else {
			/* The text behind it goes before the probe does. */
			probe->symbol_name = NULL;
			probes[held++] = probe;
			if (held == BATCH)
				release();
		}
	}
	if (length < LARGEST - 16)
		length += scnprintf(answer + length, 16, "%d\n", rc);
}

static ssize_t take(struct file *file, const char __user *from, size_t count, loff_t *position)
{
	char *text, *rest, *line;
	bool disabled = false;

	if (count > LARGEST)
		return -E2BIG;
	text = vmalloc(count + 1);
	if (!text)
		return -ENOMEM;
	if (copy_from_user(text, from, count)) {
		vfree(text);
		return -EFAULT;
	}
	text[count] = '\0';
	mutex_lock(&lock);
	length = 0;
	for (rest = text; (line = strsep(&rest, "\n"));) {
		if (!strcmp(line, "disabled"))
			disabled = true;
		else if (*line)
			try_one(line, disabled);
		cond_resched();
	}
	release();
	mutex_unlock(&lock);
	vfree(text);
	return count;
}

static ssize_t give(struct file *file, char __user *to, size_t count, loff_t *position)
{
	ssize_t rc;

	mutex_lock(&lock);
	rc = simple_read_from_buffer(to, count, position, answer, length);
	mutex_unlock(&lock);
	return rc;
}

static const struct proc_ops operations = {
	.proc_read = give,
	.proc_write = take,
	.proc_lseek = default_llseek,
};

static int __init start(void)
{
	answer = vzalloc(LARGEST);
	if (!answer)
		return -ENOMEM;
	if (!proc_create("tapvirt_kprobe_try", 0600, NULL, &operations)) {
		vfree(answer);
		return -ENOMEM;
	}
	return 0;
}

static void __exit stop(void)
{
	remove_proc_entry("tapvirt_kprobe_try", NULL);
	vfree(answer);
}

module_init(start);
module_exit(stop);
MODULE_DESCRIPTION("Asks the kernel where it takes a kprobe");
MODULE_LICENSE("GPL");
