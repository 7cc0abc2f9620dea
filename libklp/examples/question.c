/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A module for Python in C, with entry pads; question.so. */
#include <Python.h>

static long answer(void)
{
	return 41;
}

static PyObject *ask(PyObject *self, PyObject *args)
{
	(void)self;
	(void)args;
	return PyLong_FromLong(answer());
}

static PyMethodDef methods[] = {
	{ "ask", ask, METH_NOARGS, "The answer." },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT, "question", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_question(void)
{
	return PyModule_Create(&module);
}
