/*
 * Copyright (c) The tapvirt.host authors
 * GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A module that has one parameter of every type that the kernel knows, and of every behaviour that real modules show.
 */
#include <linux/kernel.h>
#include <linux/log2.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/string.h>

static unsigned char a_byte = 1;
static short a_short = 1;
static unsigned short a_ushort = 1;
static int an_int = 1;
static unsigned int a_uint = 1;
static long a_long = 1;
static unsigned long a_ulong = 1;
static unsigned long long a_ullong = 1;
static unsigned int a_hexint = 1;
static bool a_bool;
static bool an_invbool;
static int a_bint;
static bool an_enable_only;
static char *a_charp;
static char a_string[16] = "first";
static int some_ints[4] = { 1, 2, 3, 4 };
static int ints_count = ARRAY_SIZE(some_ints);
static unsigned short some_ushorts[3] = { 7, 8, 9 };
static bool some_bools[2];
static int unsafe_int = 1;
static int write_only;
static int hidden = 1;
static int read_only = 1;

module_param(a_byte, byte, 0644);
MODULE_PARM_DESC(a_byte, "One byte: a number,\nnot a letter");
module_param(a_short, short, 0644);
module_param(a_ushort, ushort, 0644);
module_param(an_int, int, 0644);
module_param(a_uint, uint, 0644);
module_param(a_long, long, 0644);
module_param(a_ulong, ulong, 0644);
module_param(a_ullong, ullong, 0644);
module_param(a_hexint, hexint, 0644);
module_param(a_bool, bool, 0644);
module_param(an_invbool, invbool, 0644);
module_param(a_bint, bint, 0644);
module_param(an_enable_only, bool_enable_only, 0644);
module_param(a_charp, charp, 0644);
module_param_string(a_string, a_string, sizeof(a_string), 0644);
/* With a count, reading shows as many as were set last; without one, all. */
module_param_array(some_ints, int, &ints_count, 0644);
module_param_array(some_ushorts, ushort, NULL, 0644);
module_param_array(some_bools, bool, NULL, 0644);
module_param_unsafe(unsafe_int, int, 0644);
module_param(write_only, int, 0200);
module_param(hidden, int, 0);
module_param(read_only, int, 0444);

/* Rounds up to a power of two, as nf_conntrack.hashsize does to a page. */
static unsigned int rounded = 1024;

static int set_rounded(const char *text, const struct kernel_param *param)
{
	unsigned int value;
	int error = kstrtouint(text, 0, &value);

	if (error)
		return error;
	if (!value)
		return -EINVAL;
	rounded = roundup_pow_of_two(value);
	return 0;
}

static const struct kernel_param_ops rounded_ops = { .set = set_rounded, .get = param_get_uint };
module_param_cb(rounded, &rounded_ops, &rounded, 0644);
__MODULE_PARM_TYPE(rounded, "uint");

/* Keeps to 100 at the most, as rcutree's intervals do. */
static unsigned long clamped = 10;

static int set_clamped(const char *text, const struct kernel_param *param)
{
	unsigned long value;
	int error = kstrtoul(text, 0, &value);

	if (error)
		return error;
	clamped = min(value, 100UL);
	return 0;
}

static const struct kernel_param_ops clamped_ops = { .set = set_clamped, .get = param_get_ulong };
module_param_cb(clamped, &clamped_ops, &clamped, 0644);
__MODULE_PARM_TYPE(clamped, "ulong");

/* Acts when it is written and reads 0 again, as rcutree.do_rcu_barrier does; the next one counts. */
static int trigger;
static int triggered;

static int set_trigger(const char *text, const struct kernel_param *param)
{
	bool now;
	int error = kstrtobool(text, &now);

	if (!error && now)
		triggered++;
	return error;
}

static const struct kernel_param_ops trigger_ops = { .set = set_trigger, .get = param_get_int };
module_param_cb(trigger, &trigger_ops, &trigger, 0644);
module_param(triggered, int, 0444);

/* Takes the beginning of a word, as workqueue.default_affinity_scope and acpi.ec_event_clearing do. */
static const char * const words[] = { "cache", "cpu", "numa" };
static int word;

static int set_word(const char *text, const struct kernel_param *param)
{
	int number;

	for (number = 0; number < ARRAY_SIZE(words); number++) {
		if (!strncasecmp(text, words[number], strlen(words[number]))) {
			word = number;
			return 0;
		}
	}
	return -EINVAL;
}

static int get_word(char *page, const struct kernel_param *param)
{
	return sprintf(page, "%s\n", words[word]);
}

static const struct kernel_param_ops word_ops = { .set = set_word, .get = get_word };
module_param_cb(a_word, &word_ops, NULL, 0644);

/* Shows all that there are with brackets around the chosen one, as pcie_aspm.policy does. */
static int choice;

static int set_choice(const char *text, const struct kernel_param *param)
{
	int number = sysfs_match_string(words, text);

	if (number < 0)
		return number;
	choice = number;
	return 0;
}

static int get_choice(char *page, const struct kernel_param *param)
{
	int number, length = 0;

	for (number = 0; number < ARRAY_SIZE(words); number++)
		length += sprintf(page + length, number == choice ? "[%s] " : "%s ", words[number]);
	return length + sprintf(page + length, "\n");
}

static const struct kernel_param_ops choice_ops = { .set = set_choice, .get = get_choice };
module_param_cb(a_choice, &choice_ops, NULL, 0644);

/* A mode that promises what the operations do not have. */
static const struct kernel_param_ops no_set_ops = { .get = param_get_int };
module_param_cb(no_set, &no_set_ops, &read_only, 0644);

static int __init params_test_init(void)
{
	return 0;
}

static void __exit params_test_exit(void)
{
}

module_init(params_test_init);
module_exit(params_test_exit);
MODULE_DESCRIPTION("One parameter of every type and behaviour");
MODULE_LICENSE("GPL");
