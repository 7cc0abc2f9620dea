/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#pragma once
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

/* What is wrong with a text. */
struct Damaged : std::runtime_error {
	using std::runtime_error::runtime_error;
};

/* Checks one byte after the other: each kind of check is a class. */
struct Check {
	virtual ~Check() = default;
	virtual void byte(unsigned char byte) = 0;
	virtual int result() const = 0;
};

/* A sum that forgets what does not fit. */
template <class T> struct Sum final : Check {
	T sum = 0;
	void byte(unsigned char byte) override;
	int result() const override { return sum; }
};

template <class T> void Sum<T>::byte(unsigned char byte)
{
	static unsigned long bytes;

	bytes++;
	sum += byte;
}

int check(Check &check, const std::string &text);
