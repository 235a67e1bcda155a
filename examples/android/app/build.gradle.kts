plugins {
    alias(libs.plugins.android.application) // Kotlin is built in, from version 9 on
}

android {
    namespace = "quad.sample"
    compileSdk = 37

    defaultConfig {
        applicationId = "quad.sample"
        minSdk = 26 // LiteRT 2.3 wants 24
        targetSdk = 37
        versionCode = 1
        versionName = "1.0"
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }

    androidResources { noCompress += "tflite" } // mapped from the package, not unpacked
}

dependencies {
    implementation(libs.litert)
    androidTestImplementation(libs.junit)
    androidTestImplementation(libs.androidx.junit)
    androidTestImplementation(libs.androidx.runner)
}
