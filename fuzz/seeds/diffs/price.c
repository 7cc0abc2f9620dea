int price(int cents)
{
	return cents;
}

int total(int count)
{
	return count * price(2);
}
