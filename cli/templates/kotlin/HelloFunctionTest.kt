package com.example.fn

import com.fnproject.fn.testing.FnTestingRule
import kotlin.test.assertEquals
import org.junit.Rule
import org.junit.Test

class HelloFunctionTest {
    @Rule
    @JvmField
    val function = FnTestingRule.createDefault()

    @Test
    fun `greets the world when nobody is named`() {
        function.givenEvent().enqueue()
        function.thenRun("com.example.fn.HelloFunctionKt", "hello")
        assertEquals("Hello, World!", function.getOnlyResult().getBodyAsString())
    }
}
