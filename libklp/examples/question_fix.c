/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The new function is written with Python's interface, as the old one: it is found by name. */
#include <klp/patch.h>

KLP_PATCH("question_fix");

typedef struct object PyObject;
extern PyObject *PyLong_FromLong(long number);

static PyObject *fixed_ask(PyObject *self, PyObject *args)
{
	(void)self;
	(void)args;
	return PyLong_FromLong(42);
}

KLP_REPLACE(module, "question", KLP_FUNC(ask, fixed_ask));
